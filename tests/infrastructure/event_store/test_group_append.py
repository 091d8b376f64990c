"""One group, one transaction: each append gets its own result."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest

from application.append import (
    Append,
    AppendCondition,
    AppendResult,
    IdempotencyRecord,
    StreamAppend,
)
from application.errors import AlreadyHandled, ApplicationError, Conflict, IdempotencyKeyReused
from domain.batch.events import BatchProgressed, BatchSealed
from domain.event import Event
from infrastructure.event_store.writer import append_group, stream_versions
from infrastructure.postgres.connection import Connection
from tests.builders import ALICE, BATCH, NOON, registered, started
from tests.infrastructure.event_store.log_support import (
    appended,
    connected,
    done_in,
    new_stream,
    steps,
    whole_log,
)

A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)
SEALING = frozenset({"batch.sealed", "batch.cancelled"})


async def group(url: str, *appends: Append) -> list[AppendResult | ApplicationError]:
    """Return the results of these appends in one transaction."""
    async with connected(url) as connection, connection.transaction():
        return await append_group(connection, appends)


async def verdicts(url: str, *appends: Append) -> list[type[object]]:
    return [type(result) for result in await group(url, *appends)]


async def test_positions_rise_in_the_order_given(database_url: str) -> None:
    streams = [new_stream() for _ in range(50)]
    appends = [
        Append(tuple(steps(stream, 0, *range(n % 5)) for stream in streams[n::10]))
        for n in range(10)
    ]

    results = [appended(result) for result in await group(database_url, *appends)]

    log = await whole_log(database_url)
    written = [
        (write.stream, number)
        for append in appends
        for write in append.writes
        for number in range(1, len(write.events) + 1)
    ]
    assert [(recorded.stream, recorded.version) for recorded in log] == written
    positions = [recorded.position for recorded in log]
    assert positions == sorted(positions)
    assert [result.position for result in results] == sorted(result.position for result in results)
    assert results[-1].position == positions[-1]


async def test_a_conflict_inside_the_group_hits_only_the_later_append(database_url: str) -> None:
    first, second, other = await group(
        database_url,
        Append((steps(A, 0, 1),)),
        Append((steps(B, 0, 1), steps(A, 0, 2))),
        Append((steps(A, 1, 3),)),
    )

    assert appended(first).versions == {A: 1}
    assert isinstance(second, Conflict)
    assert (second.stream, second.expected, second.actual) == (A, 0, 1)
    assert appended(other).versions == {A: 2}
    log = await whole_log(database_url)
    assert done_in(log, A) == [1, 3]
    assert done_in(log, B) == []  # all writes of an append are recorded, or none


async def test_a_version_from_before_the_group_conflicts(database_url: str) -> None:
    await group(database_url, Append((steps(A, 0, 1, 2),)))

    assert await verdicts(database_url, Append((steps(A, 1, 9),)), Append((steps(A, 2, 3),))) == [
        Conflict,
        AppendResult,
    ]


async def test_commuting_events_are_appended_at_any_version(database_url: str) -> None:
    results = await group(database_url, *(Append((steps(A, None, number),)) for number in range(5)))

    assert [appended(result).versions[A] for result in results] == [1, 2, 3, 4, 5]


async def test_one_append_may_write_a_stream_twice(database_url: str) -> None:
    (result,) = await group(database_url, Append((steps(A, 0, 1), steps(B, 0, 7), steps(A, 1, 2))))

    assert appended(result).versions == {A: 2, B: 1}
    assert done_in(await whole_log(database_url), A) == [1, 2]


def batch(*events: Event, expected: int | None = None) -> Append:
    return Append((StreamAppend(BATCH, expected, events),))


def joining(upload: UUID, after: int) -> Append:
    """A registration that saw the batch at version `after`, still open."""
    return Append(
        (StreamAppend(upload, 0, (registered(),)),),
        conditions=(AppendCondition(BATCH, after, SEALING),),
    )


PROGRESS = BatchProgressed(
    at=NOON, by=ALICE, counts={}, bytes_received=0, bytes_total=0, percent=0.0, through=1
)
SEALED = BatchSealed(at=NOON, by=ALICE)


async def test_nothing_joins_a_batch_that_was_sealed_meanwhile(database_url: str) -> None:
    await group(database_url, batch(started()), batch(SEALED))

    (late,) = await group(database_url, joining(A, after=1))

    assert isinstance(late, Conflict)
    assert (late.stream, late.expected, late.actual) == (BATCH, 1, 2)
    assert len(await whole_log(database_url)) == 2


async def test_progress_of_the_batch_does_not_keep_a_file_from_joining(database_url: str) -> None:
    await group(database_url, batch(started()), batch(PROGRESS))

    assert await verdicts(
        database_url, joining(A, after=1), batch(PROGRESS), joining(B, after=1)
    ) == [
        AppendResult,
        AppendResult,
        AppendResult,
    ]


async def test_a_seal_earlier_in_the_same_group_counts(database_url: str) -> None:
    await group(database_url, batch(started()))

    assert await verdicts(
        database_url, joining(A, after=1), batch(SEALED), joining(B, after=1), joining(C, after=2)
    ) == [AppendResult, AppendResult, Conflict, AppendResult]


def asked(command: UUID, fingerprint: str, body: bytes, *writes: StreamAppend) -> Append:
    return Append(writes, idempotency=IdempotencyRecord(command, "acme", fingerprint, body))


@pytest.mark.parametrize("together", [True, False], ids=["in one group", "one after another"])
async def test_a_command_sent_twice_gets_its_first_answer(
    database_url: str, together: bool
) -> None:
    command = uuid4()
    appends = (
        asked(command, "same", b"first", steps(A, 0, 1)),
        asked(command, "same", b"second", steps(A, 1, 2)),
        asked(command, "other", b"third", steps(B, 0, 1)),
    )

    if together:
        first, second, third = await group(database_url, *appends)
    else:
        first, second, third = [(await group(database_url, append))[0] for append in appends]

    assert appended(first).versions == {A: 1}
    assert isinstance(second, AlreadyHandled)
    assert second.body == b"first"
    assert isinstance(third, IdempotencyKeyReused)
    assert len(await whole_log(database_url)) == 1


async def test_an_answer_is_kept_with_its_position_even_without_events(database_url: str) -> None:
    with_events, without = uuid4(), uuid4()
    result, nothing = await group(
        database_url,
        asked(with_events, "f", b"1", steps(A, 0, 1, 2)),
        asked(without, "f", b"2"),
    )

    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT command_id, position FROM command_answers").fetchall()
    assert dict(rows) == {with_events: appended(result).position, without: 0}
    assert appended(nothing).versions == {}


async def test_a_group_inside_a_foreign_transaction_vanishes_with_it(database_url: str) -> None:
    async with connected(database_url) as connection:
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                command = asked(uuid4(), "f", b"", steps(A, 0, 1))
                (result,) = await append_group(connection, [command])
                assert appended(result).versions == {A: 1}
                assert await stream_versions(connection, [A, B]) == {A: 1, B: 0}
                raise ZeroDivisionError
        assert await stream_versions(connection, [A, B]) == {A: 0, B: 0}
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM command_answers").fetchone() == (0,)


async def test_readers_are_woken_with_the_last_position_of_the_commit(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute("LISTEN uptrail_log")
        results = await group(database_url, Append((steps(A, 0, 1),)), Append((steps(B, 0, 1, 2),)))
        (notice,) = listener.notifies(timeout=10, stop_after=1)

    assert notice.payload == str(appended(results[-1]).position)


async def test_writers_do_not_read_through_a_log_that_grew_since_they_planned(
    database_url: str,
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE stored_events SET (autovacuum_enabled = false)")

    async with connected(database_url) as connection:

        async def record(*appends: Append) -> None:
            async with connection.transaction():
                for result in await append_group(connection, appends):
                    appended(result)

        async def record_some() -> None:
            for _ in range(10):
                joining = steps(new_stream(), 0, 1)
                commanded = asked(uuid4(), "f", b"", steps(new_stream(), 0, 1))
                await record(
                    Append((joining,), conditions=(AppendCondition(A, 1, SEALING),)), commanded
                )

        await record(Append((steps(A, 0, 1),)))
        await record_some()
        await record(Append((steps(B, 0, *range(5000)),)))
        before = await scans(connection)
        await record_some()
        assert await scans(connection) - before == 0


async def scans(connection: Connection) -> int:
    """Return how often the log was read from its first row to its last."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    cursor = await connection.execute(
        "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'stored_events'"
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
