"""Delayed or stopped projector, for tests of read-your-writes."""

from __future__ import annotations

import asyncio

import pytest

from application.ports.event_log import EventLog
from infrastructure.postgres.connection import Connection
from infrastructure.read_model import projector
from infrastructure.read_model.projector import project
from infrastructure.read_model.tables import ProjectionSchema

DELAY = 0.3  # seconds


def delay_projector(monkeypatch: pytest.MonkeyPatch, seconds: float = DELAY) -> None:
    """Delay the projection of every event by at least `seconds`."""

    async def late(connection: Connection, log: EventLog, target: ProjectionSchema) -> int:
        head = await log.head()
        await asyncio.sleep(seconds)
        return await project(connection, log, target, upto=head)

    monkeypatch.setattr(projector, "project", late)


def hold_projector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the projector."""

    async def held(connection: Connection, log: EventLog, target: ProjectionSchema) -> int:
        await asyncio.sleep(0.01)
        return await target.position.load(connection)

    monkeypatch.setattr(projector, "project", held)
