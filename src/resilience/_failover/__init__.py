"""The failover group: attempts with one provider after the other, for calls and streams."""
