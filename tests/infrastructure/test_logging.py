from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import psycopg  # noqa: F401
import pytest
import structlog

from infrastructure.telemetry import configure_logging


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("psycopg").setLevel(logging.WARNING)


@pytest.mark.parametrize("name", ["interfaces.rest", "psycopg", "psycopg.pool", "procrastinate"])
def test_the_log_level_applies_to_every_library(name: str) -> None:
    stream = io.StringIO()
    configure_logging("json", "error", stream)

    logging.getLogger(name).warning("reconnecting")
    logging.getLogger(name).error("gave up")

    assert "reconnecting" not in stream.getvalue()
    assert "gave up" in stream.getvalue()
