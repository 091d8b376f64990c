"""The listener reconnects after failures, and readers always wake up."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from application.append import append_to_stream
from infrastructure.backoff import Backoff
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres import listener as listening
from infrastructure.postgres.listener import (
    LOG,
    READ_MODEL,
    UPLOADS,
    ChannelWakeups,
    Listener,
)
from tests.harness import open_log
from tests.infrastructure.event_store.log_support import connected, new_stream, step
from tests.support import eventually

KILL = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'uptrail-listener' AND datname = current_database()"""


async def kill_listener(url: str) -> bool:
    async with connected(url) as connection:
        row = await (await connection.execute(KILL)).fetchone()
        return bool(row and row[0])


async def test_a_reader_is_woken_by_a_commit(database_url: str, log: PostgresEventLog) -> None:
    async with Listener(database_url) as listener:
        wakeups = listener.wakeups(LOG)
        waiting = asyncio.create_task(wakeups.wait(0))
        result = await log.append(append_to_stream(new_stream(), 0, step(1)))
        await waiting
        await eventually(lambda: wakeups.position == result.position)
        assert listener.wakeups(READ_MODEL).position == 0


async def test_a_reader_polls_without_notifications(database_url: str) -> None:
    async with Listener(database_url) as listener:
        async with asyncio.timeout(60):
            await listener.wakeups(LOG).wait(0)
    await listener.wakeups(LOG).wait(0)  # and so it does after the listener closed


async def test_a_reader_that_is_behind_what_was_announced_does_not_wait(
    database_url: str, log: PostgresEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "POLL_INTERVAL", 86_400.0)
    async with Listener(database_url) as listener:
        wakeups = listener.wakeups(LOG)
        result = await log.append(append_to_stream(new_stream(), 0, step(1)))
        await eventually(lambda: wakeups.position == result.position)
        async with asyncio.timeout(20):
            await wakeups.wait(result.position - 1)


async def test_readers_are_woken_once_a_new_session_listens(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed before that is found by those who are woken, and announced by nobody."""
    listeners: list[int] = []
    announce = ChannelWakeups.announce

    def announce_and_count(wakeups: ChannelWakeups, position: int | None) -> None:
        with psycopg.connect(database_url, autocommit=True) as other:
            query = "SELECT query FROM pg_stat_activity WHERE application_name = 'uptrail-listener'"
            rows = other.execute(query + " AND datname = current_database()").fetchall()
        listeners.append(sum("LISTEN" in query for (query,) in rows))
        announce(wakeups, position)

    monkeypatch.setattr(ChannelWakeups, "announce", announce_and_count)
    async with Listener(database_url):
        await eventually(lambda: listeners)

    assert set(listeners) == {1}


async def test_a_listener_that_has_listened_connects_again_without_a_long_pause(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    next_pause = Backoff.next_pause

    def noted(backoff: Backoff) -> float:
        pauses.append(next_pause(backoff))
        return pauses[-1]

    monkeypatch.setattr(Backoff, "next_pause", noted)
    async with Listener(database_url) as listener:
        for number in range(1, 4):
            await eventually(listener._listening.is_set)
            await eventually(lambda: kill_listener(database_url))
            await eventually(lambda number=number: len(pauses) >= number)

    assert pauses[0] == pauses[-1] == listening.MIN_BACKOFF


async def test_a_killed_listener_reconnects_and_receives_again(database_url: str) -> None:
    heard: list[str] = []
    async with Listener(database_url) as listener, connected(database_url) as speaker:
        listener.subscribe(UPLOADS, heard.append)
        for number in range(5):
            await eventually(lambda: kill_listener(database_url))

            async def says_and_is_heard(text: str = f"notice {number}") -> bool:
                await speaker.execute("SELECT pg_notify(%s, %s)", (UPLOADS, text))
                return text in heard

            await eventually(says_and_is_heard)


async def test_a_subscription_misses_nothing_while_its_listener_is_killed(
    database_url: str, log: PostgresEventLog
) -> None:
    async def follow(listener: Listener, total: int) -> list[int]:
        positions: list[int] = []
        async with open_log(database_url) as log:
            while len(positions) < total:
                after = positions[-1] if positions else 0
                page = await log.read(after, limit=50)
                positions += [recorded.position for recorded in page]
                if not page:
                    await listener.wakeups(LOG).wait(after)
        return positions

    async with Listener(database_url) as listener:
        following = asyncio.create_task(follow(listener, 300))
        for number in range(300):
            if number % 60 == 0:
                await kill_listener(database_url)
            await log.append(append_to_stream(new_stream(), 0, step(number)))
        positions = await following
        assert positions == [item.position for item in await log.read(0, limit=1000)]


async def test_a_callback_that_fails_does_not_silence_the_others(database_url: str) -> None:
    heard: list[str] = []

    def failing(payload: str) -> None:
        raise ValueError(payload)

    async with Listener(database_url) as listener:
        listener.subscribe(UPLOADS, failing)
        unsubscribe = listener.subscribe(UPLOADS, heard.append)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("SELECT pg_notify(%s, 'a')", (UPLOADS,))
            await eventually(lambda: heard == ["a"])
            unsubscribe()
            connection.execute("SELECT pg_notify(%s, 'b')", (UPLOADS,))
            connection.execute("SELECT pg_notify(%s, '5')", (READ_MODEL,))
            await eventually(lambda: listener.wakeups(READ_MODEL).position == 5)
        assert heard == ["a"]
