"""Connections, and events with a number, for tests of the event log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from application.append import AppendResult, RecordedEvent, StreamAppend
from application.errors import ApplicationError
from domain.upload.events import FileProgressed
from infrastructure.event_store.reader import read_log
from infrastructure.postgres.connection import Connection, connect
from tests.builders import ALICE, NOON


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    connection = await connect(url, name="test")
    try:
        yield connection
    finally:
        await connection.close()


async def whole_log(url: str) -> list[RecordedEvent]:
    async with connected(url) as connection:
        return await read_log(connection, 0, 1_000_000, None)


def step(done: int) -> FileProgressed:
    """Return an event that only its number distinguishes from others."""
    return FileProgressed(at=NOON, by=ALICE, phase="transfer", done=done)


def steps(stream: UUID, expected: int | None, *done: int) -> StreamAppend:
    return StreamAppend(stream, expected, tuple(step(number) for number in done))


def new_stream() -> UUID:
    return uuid4()


def done_in(events: list[RecordedEvent], stream: UUID) -> list[int]:
    return [
        recorded.event.done
        for recorded in events
        if recorded.stream == stream and isinstance(recorded.event, FileProgressed)
    ]


def appended(result: AppendResult | ApplicationError) -> AppendResult:
    assert isinstance(result, AppendResult), result
    return result
