"""The log: structlog to stdout, JSON lines, or readable ones on a terminal.

Invariant: as JSON, one line is one record, whoever writes it: driftd, a library's logging, a warning, an uncaught
exception, a library in another language on the standard error of this process or of those that it has started.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import structlog

from retrain.base.redaction import redacted
from retrain.terms.names import printable

_STYLE = "DRIFTD_LOG_STYLE"
_QUIET = ("apscheduler", "kafka")
_LONGEST = 20_000
"""Characters of a foreign line that are kept."""
_own_stderr: int | None = None
"""The standard error that this process was started with, once it is diverted."""


def configure_logs(style: Literal["auto", "json", "console"] = "auto", crashes: Path | None = None) -> None:
    """Called once by what runs; libraries' own logging is kept to warnings. `crashes`: the file for the traceback of a
    process that was ended from below (out of memory, a fault), which is logged at the next start."""
    readable = style == "console" or (style == "auto" and sys.stdout.isatty())
    os.environ[_STYLE] = "console" if readable else "json"
    _configure(readable)
    if crashes is not None:
        _tell_of_crash(crashes)
    if not readable:
        threading.Thread(target=_read_foreign, args=(_divert_stderr(),), name="stderr", daemon=True).start()


def follow_logs() -> None:
    """In a process that was started by one with `configure_logs`: the same."""
    if style := os.environ.get(_STYLE):
        _configure(style == "console")


def last_words(text: str) -> bool:
    """Why this process ends, as a record on the standard error that it was started with; False, and nothing said,
    where that was not diverted."""
    if _own_stderr is None:
        return False
    with os.fdopen(os.dup(_own_stderr), "w") as stream:
        structlog.wrap_logger(structlog.WriteLogger(stream)).critical("driftd_ends", error=text)
    return True


def _configure(readable: bool) -> None:
    common: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [structlog.processors.format_exc_info, _without_secrets]
    last += [_without_controls, structlog.dev.ConsoleRenderer()] if readable else [structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*common, *last],
        logger_factory=structlog.WriteLoggerFactory(),  # a line is one write: none comes in between
        cache_logger_on_first_use=True,
    )
    foreign = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(foreign)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for noisy in _QUIET:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    _catch_uncaught()


def _without_secrets(_: Any, __: str, event: Any) -> Any:
    return {key: redacted(_plain(value), key) for key, value in event.items()}


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, dict):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(of) for of in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _without_controls(_: Any, __: str, event: Any) -> Any:
    return {key: printable(value, "\n\t") if isinstance(value, str) else value for key, value in event.items()}


def _catch_uncaught() -> None:
    log = structlog.get_logger()
    sys.excepthook = lambda _kind, exc, _trace: log.critical("uncaught_exception", exc_info=exc)
    threading.excepthook = lambda args: log.critical(
        "uncaught_exception", thread=args.thread.name if args.thread else None, exc_info=args.exc_value
    )
    sys.unraisablehook = lambda told: log.warning(
        "exception_ignored", where=repr(told.object)[:200], exc_info=told.exc_value
    )


def _tell_of_crash(path: Path) -> None:
    if path.is_file() and (told := path.read_text(errors="replace")[:_LONGEST]):
        structlog.get_logger().error("process_had_crashed", trace=told)
    faulthandler.enable(path.open("w"))


def _divert_stderr() -> int:
    """From now on what is written to standard error can be read from the file descriptor that comes back."""
    global _own_stderr
    ours, theirs = os.pipe()
    sys.stderr.flush()
    _own_stderr = os.dup(2)
    os.dup2(theirs, 2)
    os.close(theirs)
    return ours


def _read_foreign(source: int) -> None:
    log = structlog.get_logger()
    with os.fdopen(source, encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            if text := line.strip():
                log.warning("stderr", line=text[:_LONGEST])
