"""Delayed or stopped projector, for tests of read-your-writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from application.ports.event_log import EventLog
from application.ports.read_model import ProjectedRows
from infrastructure.read_model import projector
from infrastructure.read_model.projector import project_rows

DELAY = 0.3  # seconds


def delay_projector(monkeypatch: pytest.MonkeyPatch, seconds: float = DELAY) -> None:
    """Delay the projection of every event by at least `seconds`."""

    async def late(rows: ProjectedRows, log: EventLog, **bounds: Any) -> int:
        if bounds:  # a rebuild
            return await project_rows(rows, log, **bounds)
        head = await log.head()
        await asyncio.sleep(seconds)
        return await project_rows(rows, log, upto=head)

    monkeypatch.setattr(projector, "project_rows", late)


def hold_projector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the projector."""

    async def held(rows: ProjectedRows, log: EventLog, **bounds: Any) -> int:
        if bounds:  # a rebuild
            return await project_rows(rows, log, **bounds)
        await asyncio.sleep(0.01)
        return await rows.position()

    monkeypatch.setattr(projector, "project_rows", held)
