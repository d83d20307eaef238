"""The circuit breaker: its settings, its states, and calling a function under its protection."""
