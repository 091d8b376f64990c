"""The committer against a server that goes away: every append is recorded exactly once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from application.append import Append, append_to_stream
from application.errors import Conflict, OutcomeUnknown, Unavailable
from infrastructure.event_store.codec import CODEC
from infrastructure.event_store.committer import (
    AppendQueue,
    GroupCommitter,
    PendingAppend,
    UnsafeWriter,
)
from infrastructure.event_store.writer import encode
from infrastructure.postgres.embedded.data_directory import server_dir_path
from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.postgres.schema import migrate
from tests.infrastructure.event_store.faulty_proxy import Cut, FaultyProxy
from tests.infrastructure.event_store.log_support import (
    connected,
    done_in,
    new_stream,
    step,
    steps,
    whole_log,
)
from tests.support import eventually

KILL = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'uptrail-committer' AND datname = current_database()"""


async def append_in_order(
    committer: GroupCommitter, stream: UUID, until: Callable[[], bool]
) -> int:
    """Appends 0, 1, 2... each at the version the one before left; returns how many."""
    number = 0
    while not until():
        appended = await committer.append(append_to_stream(stream, number, step(number)))
        number += 1
        assert appended.versions == {stream: number}
    return number


async def everything_once(url: str, counts: dict[UUID, int]) -> None:
    log = await whole_log(url)
    assert {stream: done_in(log, stream) for stream in counts} == {
        stream: list(range(count)) for stream, count in counts.items()
    }


async def test_a_killed_connection_neither_loses_nor_doubles_an_append(database_url: str) -> None:
    streams = [new_stream() for _ in range(8)]
    kills = 0
    async with GroupCommitter(database_url) as committer, connected(database_url) as killer:
        tasks = [
            asyncio.create_task(append_in_order(committer, stream, lambda: kills >= 15))
            for stream in streams
        ]
        while kills < 15:
            await asyncio.sleep(random.uniform(0.0, 0.05))
            row = await (await killer.execute(KILL)).fetchone()
            kills += row[0] if row else 0
        counts = dict(zip(streams, await asyncio.gather(*tasks), strict=True))
    await everything_once(database_url, counts)
    assert sum(counts.values()) > 0


async def test_postgres_killed_and_recovered_neither_loses_nor_doubles(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    url = server.start()

    try:
        migrate(url)
        streams = [new_stream() for _ in range(8)]
        enough = asyncio.Event()
        async with GroupCommitter(url, patience=600.0) as committer:
            tasks = [
                asyncio.create_task(append_in_order(committer, stream, enough.is_set))
                for stream in streams
            ]
            for _ in range(2):
                await committer.append(append_to_stream(new_stream(), 0, step(0)))
                os.kill(postmaster(tmp_path), signal.SIGKILL)
                await asyncio.to_thread(server.start)
                await committer.append(append_to_stream(new_stream(), 0, step(0)))
            enough.set()
            counts = dict(zip(streams, await asyncio.gather(*tasks), strict=True))
        await everything_once(url, counts)
    finally:
        server.discard()


def postmaster(data_dir: Path) -> int:
    (pid_file,) = server_dir_path(data_dir).resolve().rglob("postmaster.pid")
    return int(pid_file.read_text().split()[0])


@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.value)
async def test_a_connection_cut_during_commit_is_looked_up(
    database_url: str, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.event_store.libpq.EXCHANGE_TIMEOUT", 1.0)

    stream = new_stream()
    async with FaultyProxy(database_url).running() as line, GroupCommitter(line.url) as committer:
        line.arm(cut)
        first = await committer.append(append_to_stream(stream, 0, step(0)))
        second = await committer.append(append_to_stream(stream, 1, step(1)))
        assert line.cuts == 1
        assert (first.versions, second.versions) == ({stream: 1}, {stream: 2})
    log = await whole_log(database_url)
    assert done_in(log, stream) == [0, 1]
    assert [first.position, second.position] == [recorded.position for recorded in log]


async def test_a_version_taken_by_another_writer_is_a_conflict(database_url: str) -> None:
    stream = new_stream()
    async with (
        FaultyProxy(database_url).running() as line,
        GroupCommitter(line.url, patience=20.0) as ours,
        GroupCommitter(database_url) as theirs,
    ):
        line.arm(Cut.BEFORE_COMMIT)
        line_down = asyncio.create_task(ours.append(append_to_stream(stream, 0, step(1))))
        await eventually(lambda: line.cuts)
        line.down()
        await theirs.append(append_to_stream(stream, 0, step(2)))
        line.down(False)
        with pytest.raises(Conflict):
            await line_down
    assert done_in(await whole_log(database_url), stream) == [2]


async def test_a_version_taken_by_a_writer_without_the_lock_is_a_conflict(
    database_url: str,
) -> None:
    stream = new_stream()
    topic, state = CODEC.encode(step(2))
    async with (
        GroupCommitter(database_url) as committer,
        connected(database_url) as foreign,
        connected(database_url) as observer,
    ):

        async def is_over_or_waits() -> bool:
            cursor = await observer.execute(
                "SELECT FROM pg_stat_activity WHERE application_name = 'uptrail-committer'"
                " AND datname = current_database() AND wait_event_type = 'Lock'"
            )
            return appending.done() or await cursor.fetchone() is not None

        async with foreign.transaction():
            await foreign.execute(
                "INSERT INTO stored_events VALUES (%s, 1, %s, %s)", (stream, topic, state)
            )
            appending = asyncio.create_task(committer.append(append_to_stream(stream, 0, step(1))))
            await eventually(is_over_or_waits)
        with pytest.raises(Conflict):
            await appending
    assert done_in(await whole_log(database_url), stream) == [2]


async def test_an_append_that_was_not_sent_is_unavailable_and_not_recorded(
    database_url: str,
) -> None:
    async with (
        FaultyProxy(database_url).running() as line,
        GroupCommitter(line.url, patience=0.3) as committer,
    ):
        line.down()
        with pytest.raises(Unavailable):
            await committer.append(append_to_stream(new_stream(), 0, step(0)))
        line.down(False)
        await committer.append(append_to_stream(new_stream(), 0, step(1)))
    assert len(await whole_log(database_url)) == 1


async def test_an_append_with_unknown_outcome_is_never_reported_as_unavailable(
    database_url: str,
) -> None:
    async with (
        FaultyProxy(database_url).running() as line,
        GroupCommitter(line.url, patience=0.5) as committer,
    ):
        line.arm(Cut.AFTER_COMMIT)
        pending = asyncio.create_task(committer.append(append_to_stream(new_stream(), 0, step(0))))
        await eventually(lambda: line.cuts)
        line.down()
        with pytest.raises(OutcomeUnknown):
            await pending


async def test_no_caller_waits_longer_than_its_deadline_for_a_server_that_is_silent(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.event_store.libpq.EXCHANGE_TIMEOUT", 3.0)

    async with (
        FaultyProxy(database_url).running() as line,
        GroupCommitter(line.url, patience=0.5) as committer,
    ):
        line.arm(Cut.SILENCE)
        sent = asyncio.create_task(committer.append(append_to_stream(new_stream(), 0, step(0))))
        await eventually(lambda: line.cuts)
        with pytest.raises(Unavailable):  # it waits behind the other, and is never sent
            await committer.append(append_to_stream(new_stream(), 0, step(1)))
        with pytest.raises(OutcomeUnknown):
            await sent
        assert committer._exchange is not None  # still silent: no caller waited for its end
    assert len(await whole_log(database_url)) == 1


async def test_a_log_that_takes_no_writes_is_refused_sooner(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.event_store.committer.READ_ONLY_TIMEOUT", 0.1)
    read_only = make_conninfo(database_url, options="-c default_transaction_read_only=on")

    async with GroupCommitter(read_only, patience=3600.0) as committer:
        with pytest.raises(Unavailable):
            await committer.append(append_to_stream(new_stream(), 0, step(0)))


async def test_a_session_that_records_waits_and_idles_for_ten_seconds_at_most(
    database_url: str,
) -> None:
    """A process that is stopped while it holds the lock of the log must not stop the others."""
    async with connected(database_url) as connection, GroupCommitter(database_url) as committer:
        await connection.execute("CREATE TABLE seen (name text, value text)")
        await connection.execute(
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO seen SELECT name, current_setting(name) FROM unnest(ARRAY["
            "'lock_timeout', 'idle_in_transaction_session_timeout']) AS name; RETURN NULL; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER see AFTER INSERT ON stored_events EXECUTE FUNCTION see()"
        )
        await committer.append(append_to_stream(new_stream(), 0, step(0)))

        cursor = await connection.execute("SELECT name, value FROM seen")
        assert dict(await cursor.fetchall()) == {
            "lock_timeout": "10s",
            "idle_in_transaction_session_timeout": "10s",
        }


async def test_a_full_waiting_room_makes_appenders_wait_outside(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.event_store.committer.MAX_QUEUED_EVENTS", 10)
    monkeypatch.setattr("infrastructure.event_store.committer.MAX_GROUP_EVENTS", 10)

    async with GroupCommitter(database_url) as committer:
        streams = [new_stream() for _ in range(100)]
        sizes = [1 + number % 7 for number in range(99)] + [400]
        await asyncio.gather(
            *(
                committer.append(Append((steps(stream, 0, *range(size)),)))
                for stream, size in zip(streams, sizes, strict=True)
            )
        )
    await everything_once(database_url, dict(zip(streams, sizes, strict=True)))


async def test_a_caller_that_goes_away_leaves_the_others_alone(database_url: str) -> None:
    async with GroupCommitter(database_url) as committer:
        streams = [new_stream() for _ in range(40)]
        tasks = [
            asyncio.create_task(committer.append(append_to_stream(stream, 0, step(0))))
            for stream in streams
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    log = await whole_log(database_url)
    for stream, result in zip(streams, results, strict=True):
        if not isinstance(result, BaseException):
            assert done_in(log, stream) == [0]
    assert sum(isinstance(result, BaseException) for result in results) == 20


async def test_an_append_that_cannot_be_stored_does_not_spoil_its_group(database_url: str) -> None:
    poisonous = msgspec.structs.replace(
        append_to_stream(UUID(int=1), 0, step(0)), writes=(steps(UUID(int=1), 2**63 - 1, 1),)
    )
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO stored_events VALUES (%s, %s, 'upload.queued', '')",
            (UUID(int=1), 2**63 - 1),
        )
    good = new_stream()
    async with GroupCommitter(database_url) as committer:
        bad, fine = await asyncio.gather(
            committer.append(poisonous),
            committer.append(append_to_stream(good, 0, step(0))),
            return_exceptions=True,
        )
    assert isinstance(bad, Exception)
    assert not isinstance(fine, BaseException)
    assert fine.versions == {good: 1}


async def test_closing_records_what_waits_and_refuses_what_comes(database_url: str) -> None:
    committer = GroupCommitter(database_url)
    await committer.start()
    stream = new_stream()
    waiting = asyncio.gather(
        *(committer.append(append_to_stream(stream, None, step(number))) for number in range(2000))
    )
    await asyncio.sleep(0)
    await committer.close()
    assert len(await waiting) == 2000
    with pytest.raises(Unavailable):
        await committer.append(append_to_stream(stream, None, step(0)))
    await everything_once(database_url, {stream: 2000})


async def test_a_blocked_append_fails_when_the_log_closes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.event_store.committer.MAX_QUEUED_EVENTS", 3)
    monkeypatch.setattr("infrastructure.event_store.committer.MAX_GROUP_EVENTS", 3)

    committer = GroupCommitter(database_url)
    await committer.start()
    streams = [new_stream() for _ in range(60)]
    tasks = [
        asyncio.create_task(committer.append(append_to_stream(stream, 0, step(0))))
        for stream in streams
    ]
    await asyncio.sleep(0)
    for task in tasks[:3]:
        task.cancel()
    await committer.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    log = await whole_log(database_url)
    for stream, result in zip(streams[3:], results[3:], strict=True):
        assert done_in(log, stream) == ([] if isinstance(result, Unavailable) else [0])


async def test_a_queue_that_closes_wakes_those_who_wait_for_room() -> None:
    def pending() -> PendingAppend:
        loop = asyncio.get_running_loop()
        encoded = encode(append_to_stream(new_stream(), 0, step(0)))
        return PendingAppend(encoded, loop.create_future(), loop.time() + 3600)

    queue, first = AppendQueue(1), pending()
    await queue.enter(first)
    blocked = asyncio.create_task(queue.enter(pending()))
    await asyncio.sleep(0)

    assert queue.close() == [first]

    await asyncio.wait([blocked], timeout=20)
    assert isinstance(blocked.exception(), TimeoutError)
    with pytest.raises(TimeoutError):
        await queue.enter(pending())


async def test_a_database_that_can_record_out_of_order_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "CREATE FUNCTION es_insert_events_uuid(events stored_event_uuid[]) "
            "RETURNS SETOF bigint LANGUAGE sql AS 'SELECT 1::bigint'"
        )

    with pytest.raises(UnsafeWriter, match="DROP FUNCTION es_insert_events_uuid"):
        await GroupCommitter(database_url).start()
