"""A reader that follows the log while many writers append misses no event."""

from __future__ import annotations

import asyncio
import sys
from uuid import UUID

import pytest

from application.append import Append, RecordedEvent
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.reader import read_log
from infrastructure.event_store.writer import append_group
from infrastructure.postgres.listener import LOG, Listener
from infrastructure.postgres.locks import LOG_LOCK
from tests.infrastructure.event_store.log_support import (
    appended,
    connected,
    new_stream,
    steps,
    whole_log,
)
from tests.support import eventually

WRITERS = 8
SIZES = (1, 1, 400, 1, 1, 1, 400, 1, 1, 400)
TOTAL = WRITERS * sum(SIZES)

WRITER_PROCESS = """
import asyncio, sys
from infrastructure.event_store.committer import GroupCommitter
from tests.infrastructure.event_store.log_support import new_stream
from tests.infrastructure.event_store.test_order import write_mixed

async def main():
    async with GroupCommitter(sys.argv[1]) as one, GroupCommitter(sys.argv[1]) as other:
        await asyncio.gather(write_mixed(one, new_stream()), write_mixed(other, new_stream()))

asyncio.run(main())
"""


async def write_mixed(committer: GroupCommitter, stream: UUID) -> None:
    version = 0
    for size in SIZES:
        result = await committer.append(
            Append((steps(stream, version, *range(version, version + size)),))
        )
        version = result.versions[stream]


async def write_in_foreign_transactions(url: str, stream: UUID) -> None:
    """Follow the log as the orchestrator does, on a connection of its own."""
    version = 0
    async with connected(url) as connection:
        for size in SIZES:
            append = Append((steps(stream, version, *range(version, version + size)),))
            async with connection.transaction():
                (result,) = await append_group(connection, [append])
            version = appended(result).versions[stream]


async def tail(url: str, total: int) -> list[RecordedEvent]:
    """Follows the log from its start, as a projector does, until it has seen everything."""
    seen: list[RecordedEvent] = []
    async with Listener(url) as listener, connected(url) as connection:
        wakeups = listener.wakeups(LOG)
        while len(seen) < total:
            after = seen[-1].position if seen else 0
            page = await read_log(connection, after, 300, None)
            seen += page
            if not page:
                await wakeups.wait(after)
    return seen


def assert_in_order(seen: list[RecordedEvent], log: list[RecordedEvent]) -> None:
    assert [recorded.position for recorded in seen] == [recorded.position for recorded in log]
    versions: dict[UUID, list[int]] = {}
    for recorded in seen:
        versions.setdefault(recorded.stream, []).append(recorded.version)
    assert list(versions.values()) == [list(range(1, sum(SIZES) + 1))] * WRITERS


async def test_a_tailing_reader_misses_nothing_of_writers_on_many_connections(
    database_url: str,
) -> None:
    async def committing(stream: UUID) -> None:
        async with GroupCommitter(database_url) as committer:
            await write_mixed(committer, stream)

    reader = asyncio.create_task(tail(database_url, TOTAL))
    writers = [committing(new_stream()) for _ in range(WRITERS - 2)]
    foreign = [write_in_foreign_transactions(database_url, new_stream()) for _ in range(2)]
    await asyncio.gather(*writers, *foreign)
    assert_in_order(await reader, await whole_log(database_url))


async def test_a_tailing_reader_misses_nothing_of_writers_in_other_processes(
    database_url: str,
) -> None:
    async def process() -> None:
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER_PROCESS, database_url
        )
        assert await writer.wait() == 0

    reader = asyncio.create_task(tail(database_url, TOTAL))
    await asyncio.gather(*(process() for _ in range(WRITERS // 2)))
    assert_in_order(await reader, await whole_log(database_url))


@pytest.mark.parametrize("expected", [0, None], ids=["at once", "after the versions were read"])
async def test_nothing_is_recorded_while_another_writer_holds_the_lock(
    database_url: str, expected: int | None
) -> None:
    async with connected(database_url) as holder, GroupCommitter(database_url) as committer:
        append = Append((steps(new_stream(), expected, 1),))

        async def ends_or_waits() -> bool:
            cursor = await holder.execute(
                "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            return appending.done() or await cursor.fetchone() is not None

        async with holder.transaction():
            await LOG_LOCK.acquire_in_transaction(holder)
            appending = asyncio.create_task(committer.append(append))
            await eventually(ends_or_waits)
            assert not appending.done()
        assert (await appending).position
