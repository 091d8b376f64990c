"""Structured logs: one line an event, JSON for programs or coloured text for people."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

_SHARED: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)
_CHATTY = dict.fromkeys(("alembic", "aiohttp.access", "procrastinate"), logging.WARNING)


def configure_logging(format: str, level: str, stream: TextIO = sys.stderr) -> None:
    """Sends everything, ours and the libraries', to one stream in one shape.

    `format` is auto, json or console; owner, batch, upload, attempt and trace come along where
    they were bound with `structlog.contextvars`.
    """
    pretty = format == "console" or (format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED, processors=_rendering(pretty, stream)
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _CHATTY.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _rendering(pretty: bool, stream: TextIO) -> list[Any]:
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if pretty:
        return [
            remove,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                pad_event_to=28,
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    return [remove, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
