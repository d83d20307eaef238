"""The library's logger, and the log line for an exception that is suppressed.

Messages of foreign exceptions may quote prompts and transcripts, so only the type of an exception
and the place where it was raised are logged.
"""

import logging
from traceback import walk_tb

logger = logging.getLogger("resilience")


def log_suppressed(source: str, error: Exception) -> None:
    """Log an exception of foreign code that must not affect the present call."""
    *_, (frame, line) = walk_tb(error.__traceback__)
    logger.error(
        "%s raised %s at %s:%d",
        source,
        type(error).__name__,
        frame.f_code.co_filename,
        line,
        extra={"resilience_source": source, "resilience_error": type(error).__name__},
    )
