"""Optimistic group appends: recorded if every expected version holds, else decided one by one."""

from __future__ import annotations

import asyncio
from uuid import UUID

import psycopg
import pytest

from application.append import (
    Append,
    AppendCondition,
    IdempotencyRecord,
    StreamAppend,
    append_to_stream,
)
from application.errors import Conflict
from domain.batch.events import CLOSING, BatchSealed
from infrastructure.event_store import committer as committer_module
from infrastructure.event_store.committer import (
    GroupCommitter,
    InFlight,
    acquire_session_lock,
    resolve_ambiguous,
)
from infrastructure.event_store.writer import append_in, encode, plan_optimistic
from tests.builders import ALICE, NOON
from tests.infrastructure.event_store.log_support import (
    connected,
    done_in,
    new_stream,
    step,
    steps,
    whole_log,
)
from tests.support import eventually


def sealed(batch: UUID) -> Append:
    return append_to_stream(batch, None, BatchSealed(at=NOON, by=ALICE))


async def test_a_version_conflict_fails_alone_in_its_group(database_url: str) -> None:
    known, fresh = new_stream(), new_stream()
    async with GroupCommitter(database_url) as committer:
        await committer.append(append_to_stream(known, 0, step(0)))
        wrong, right, after = await asyncio.gather(
            committer.append(append_to_stream(known, 0, step(1))),
            committer.append(append_to_stream(fresh, 0, step(2))),
            committer.append(append_to_stream(known, 1, step(3))),
            return_exceptions=True,
        )
        assert isinstance(wrong, Conflict)
        assert wrong.actual == 1
        assert not isinstance(right, BaseException)
        assert not isinstance(after, BaseException)
        assert right.position < after.position
    log = await whole_log(database_url)
    assert (done_in(log, known), done_in(log, fresh)) == ([0, 3], [2])


@pytest.mark.parametrize("after", [0, 1], ids=["before-it-was-sealed", "since-it-was-sealed"])
async def test_a_condition_on_absent_events_is_checked_against_the_log(
    database_url: str, after: int
) -> None:
    batch, file = new_stream(), new_stream()
    joining = Append((steps(file, 0, 1),), conditions=(AppendCondition(batch, after, CLOSING),))
    async with GroupCommitter(database_url) as committer:
        await committer.append(sealed(batch))
        if after:
            await committer.append(joining)
        else:
            with pytest.raises(Conflict):
                await committer.append(joining)
    assert done_in(await whole_log(database_url), file) == [1] * after


async def test_a_stream_shorter_than_its_expected_version_is_a_conflict(
    database_url: str,
) -> None:
    stream = new_stream()
    async with GroupCommitter(database_url) as committer:
        await committer.append(append_to_stream(stream, 0, step(0)))
        with pytest.raises(Conflict):
            await committer.append(append_to_stream(stream, 2, step(1)))
    assert done_in(await whole_log(database_url), stream) == [0]


def test_the_fast_path_takes_only_groups_that_expect_every_version() -> None:
    stream = new_stream()
    whatever = encode(append_to_stream(stream, None, step(0)))
    first, second, other = (encode(append_to_stream(stream, n, step(n))) for n in (0, 1, 5))
    nothing = encode(Append((StreamAppend(stream, 0, ()),)))
    record = IdempotencyRecord(stream, "acme", "fingerprint", b"answer")
    answered = encode(Append((steps(stream, 0, 1),), idempotency=record))
    assert plan_optimistic([whatever]) is None
    assert plan_optimistic([answered]) is None  # its answer is stored by the checked path
    assert plan_optimistic([first, other]) is None
    assert plan_optimistic([first, nothing]) is None
    believed = plan_optimistic([first, second])
    assert believed is not None
    assert believed.versions == {stream: 0}
    assert [row.version for placed in believed.placed for row in placed.rows] == [1, 2]


async def test_looking_up_ends_the_session_that_may_have_yet_to_read_the_rows(
    database_url: str,
) -> None:
    believed = plan_optimistic([encode(append_to_stream(new_stream(), 0, step(0)))])
    assert believed is not None
    async with connected(database_url) as lost, connected(database_url) as found:
        session = await acquire_session_lock(lost)
        (placed,) = believed.placed
        async with asyncio.timeout(20):
            assert await resolve_ambiguous(found, [InFlight(placed, session)]) == [None]
        with pytest.raises(psycopg.OperationalError):
            await lost.execute("SELECT 1")


async def test_looking_up_waits_for_the_end_of_a_session_that_records_until_then(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was asked to end a session may commit what it has read before."""
    monkeypatch.setattr(committer_module, "_END_SESSION", "SELECT %s::int, %s::int")
    append = append_to_stream(new_stream(), 0, step(0))
    believed = plan_optimistic([encode(append)])
    assert believed is not None
    async with (
        connected(database_url) as lost,
        connected(database_url) as found,
        connected(database_url) as observer,
    ):
        session = await acquire_session_lock(lost)
        (placed,) = believed.placed
        looking = asyncio.create_task(resolve_ambiguous(found, [InFlight(placed, session)]))

        async def looks_or_waits() -> bool:
            cursor = await observer.execute(
                "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'",
                (found.info.backend_pid,),
            )
            return looking.done() or await cursor.fetchone() is not None

        await eventually(looks_or_waits)
        async with lost.transaction():
            recorded = await append_in(lost, append)
        await lost.close()

        assert await looking == [recorded]
