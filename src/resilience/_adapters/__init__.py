"""The failover group behind the interfaces of `llm`, `stt` and `tts`."""
