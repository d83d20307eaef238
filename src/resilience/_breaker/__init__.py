"""The circuit breaker: its settings, its states, and the calls that it protects."""
