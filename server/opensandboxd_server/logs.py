"""Structured logs: console on a terminal, JSON lines otherwise; one pipeline for structlog and for stdlib's logging.

Secrets do not belong in a log call. As a last line of defence, values under keys that look like secrets are replaced.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from logging.handlers import RotatingFileHandler
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from opensandboxd_server.settings import LogSettings

REDACTED = "[redacted]"
_SECRET_KEY = re.compile(
    r"passw(or)?d|secret|token|credential|authorization|api[_.-]?key|private[_.-]?key"
    r"|(^|[_.-])(auth|env|environ|environment|dsn)($|[_.-])"
)
_STDLIB_LEVELS = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


def configure(log: LogSettings) -> None:
    """Sends every log call of this process where `log` says. Call it once, before the first log call."""
    level = logging.getLevelNamesMapping()[log.level]
    to_terminal = not log.file_enabled and sys.stderr.isatty()
    console = log.format == "console" or (log.format == "auto" and to_terminal)
    structlog.configure(
        processors=_processors(console=console, colors=to_terminal),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_file_factory(log) if log.file_enabled else structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=level, handlers=[_StdlibHandler()], force=True)


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A structlog processor: replaces the values of keys that look like secrets, at any depth."""
    return {key: REDACTED if _is_secret(key) else _redacted(value) for key, value in event.items()}


def _redacted(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: REDACTED if _is_secret(str(key)) else _redacted(below) for key, below in value.items()}
        case list() | tuple():
            return [_redacted(item) for item in value]
        case _:
            return value


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return bool(_SECRET_KEY.search(key.lower()))


def _processors(*, console: bool, colors: bool) -> list[Processor]:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    if console:
        # the pretty formatter prints local variables, and so secrets
        return [
            *shared,
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
        ]
    return [*shared, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


class _FileLogger:
    """What structlog hands rendered lines to: a file that rotates."""

    def __init__(self, handler: RotatingFileHandler) -> None:
        self._handler = handler

    def msg(self, line: str) -> None:
        self._handler.handle(logging.makeLogRecord({"msg": line}))

    debug = info = warning = error = critical = msg


def _file_factory(log: LogSettings) -> Callable[..., _FileLogger]:
    log.file_path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(
        log.file_path, maxBytes=log.file_max_bytes, backupCount=log.file_backup_count, encoding="utf-8"
    )
    logger = _FileLogger(handler)
    return lambda *args: logger


class _StdlibHandler(logging.Handler):
    """Carries records of libraries (docker, grpc, urllib3, asyncio) into the pipeline, under their logger's name."""

    def __init__(self) -> None:
        super().__init__()
        self._log = structlog.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        level = next((known for known in _STDLIB_LEVELS if record.levelno >= known), logging.DEBUG)
        try:
            self._log.log(level, record.getMessage(), logger=record.name, exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - a broken log call of a library must not break the server
            self.handleError(record)
