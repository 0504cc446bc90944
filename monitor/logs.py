"""structlog to stdout: JSON lines, or readable ones on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure_logs(style: Literal["auto", "json", "console"] = "auto") -> None:
    """Called once by the command that runs; libraries' own logging is kept to warnings."""
    readable = style == "console" or (style == "auto" and sys.stdout.isatty())
    renderer = structlog.dev.ConsoleRenderer() if readable else structlog.processors.JSONRenderer()
    exceptions = [] if readable else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
    for noisy in ("apscheduler", "kafka"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
