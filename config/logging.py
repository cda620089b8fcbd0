"""Logging for every process: structlog in front of the standard library, for people (console) or for machines (json).

Each line carries the bound context (`batch_id`, `partition`, `job_id`). Payloads and secrets are masked here, in one place,
so that a careless keyword cannot leak one.
"""

import logging
import time
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

SECRET_WORDS: Final = ("password", "token", "secret", "authorization", "cookie", "api_key", "dsn")
PAYLOAD_KEYS: Final = frozenset({"raw", "payload", "body", "message_bytes"})
_MASK: Final = "***"
_TEXT_LIMIT: Final = 2_000
_SELDOM_S: Final = 60.0
_SELDOM_LINES: Final = 500


def mask(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace secrets by stars and payloads by their length; cut texts over 2,000 characters."""
    for key, value in event.items():
        if any(word in key.lower() for word in SECRET_WORDS):
            event[key] = _MASK
        elif isinstance(value, bytes | bytearray | memoryview):
            event[key] = f"<{len(value)} bytes>"
        elif key in PAYLOAD_KEYS:
            event[key] = f"<{len(str(value))} characters>"
        elif isinstance(value, str) and len(value) > _TEXT_LIMIT and key != "exception":
            event[key] = f"{value[:_TEXT_LIMIT]}… ({len(value)} characters)"
    return event


class Seldom(logging.Filter):
    """Let each distinct line of a chatty library pass once a minute; it repeats the same one at every attempt to reconnect."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, line = time.monotonic(), record.getMessage()
        if now - self._passed.get(line, -_SELDOM_S) < _SELDOM_S:
            return False
        if len(self._passed) >= _SELDOM_LINES:
            self._passed.clear()
        self._passed[line] = now
        return True


def _shared() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        mask,
    ]


def _renderer(log_format: str) -> list[Any]:
    if log_format == "json":
        return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(sort_keys=True)]
    return [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]


def configure(log_format: str, level: str) -> dict[str, Any]:
    """Set structlog up and return Django's `LOGGING`; `log_format` is console or json, `level` a name of the standard library."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structured": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": _shared(),
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(log_format)],
            }
        },
        "filters": {"seldom": {"()": Seldom}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structured"}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
        "loggers": {
            "django.db.backends": {"level": "INFO"},
            "django.request": {"level": "ERROR"},
            "daphne": {"level": "WARNING"},
            # The loops report a lost broker themselves; the client repeats each failed attempt.
            "pulsar": {"level": "ERROR", "filters": ["seldom"]},
            "uvicorn.access": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.beat": {"level": "WARNING"},
        },
    }
