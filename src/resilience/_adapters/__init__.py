"""Failover groups with the interfaces of `llm`, `stt` and `tts`."""
