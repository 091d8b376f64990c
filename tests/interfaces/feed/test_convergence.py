"""Cut, filtered, slow or concurrent clients end with the rows of the read model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from domain.event import Event
from domain.upload.events import (
    AttemptFailed,
    AttemptSucceeded,
    FileProgressed,
    UploadCompleted,
)
from interfaces.feed.connection import FeedLimits
from tests.builders import ALICE, NOON, WORKER, attempt, queued, received
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.interfaces.feed.ws_client import FeedClient
from tests.support import eventually


def a_life() -> Sequence[Event]:
    """Record an upload from its transfer through a failed attempt to its end."""
    moving = [
        FileProgressed(at=NOON, by=ALICE, phase="transfer", done=n, total=100, percent=float(n))
        for n in (20, 60, 100)
    ]
    failed = AttemptFailed(
        at=NOON,
        by=WORKER,
        number=1,
        step="checksum",
        error_type="OSError",
        message="connection reset",
        permanent=False,
        duration=0.2,
        retry_at=NOON + timedelta(seconds=1),
    )
    ended = (
        AttemptSucceeded(at=NOON, by=WORKER, number=2, duration=0.5),
        UploadCompleted(at=NOON, by=WORKER),
    )
    return (*moving, received(), queued(), attempt(), failed, attempt(2), *ended)


async def busy(feed: FeedHarness, batch: UUID, uploads: int, chance: random.Random) -> None:
    """Many uploads live at the same time, their events mixed at random."""

    async def live(path: str) -> None:
        upload = await feed.upload(batch, path)
        for event in a_life():
            await feed.record(upload, event)
            await asyncio.sleep(chance.random() * 0.02)

    await asyncio.gather(*(live(f"{n:03}.jpg") for n in range(uploads)))


async def agree(feed: FeedHarness, viewer: FeedClient, batch: UUID) -> None:
    """Reads on until the log's end is known, and compares all rows."""
    await viewer.until_position(max((await feed.positions(batch))["uploads"].values()))
    assert viewer.positions() == await feed.positions(batch)
    states = {row["state"] for row in viewer.rows["uploads"].values()}
    assert states == {"completed"}
    attempts = {row["state"] for row in viewer.rows["attempts"].values()}
    assert attempts == {"failed", "succeeded"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.options(limits=FeedLimits(page_size=7), feed_tick=0.005)
async def test_clients_that_come_at_any_moment_agree_with_the_read_model(
    feed: FeedHarness, seed: int
) -> None:
    chance = random.Random(seed)
    # Small pages and a fast tick: as many seams as possible.
    async with AsyncExitStack() as viewers:
        batch, key = await feed.batch(), await feed.key()
        writing = asyncio.create_task(busy(feed, batch, 40, chance))
        reading = []
        for _ in range(8):
            await asyncio.sleep(chance.random() * 0.05)
            viewer = await viewers.enter_async_context(feed.viewer(key))
            await viewer.subscribe([batch])
            reading.append(asyncio.create_task(_until_done(viewer, 40)))
        await writing
        await feed.projected()
        for task in reading:
            await agree(feed, await task, batch)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.options(limits=FeedLimits(page_size=7), feed_tick=0.005)
async def test_a_client_cut_and_resumed_again_and_again_agrees_with_one_that_was_not(
    feed: FeedHarness, seed: int
) -> None:
    chance = random.Random(seed)
    batch, key = await feed.batch(), await feed.key()
    writing = asyncio.create_task(busy(feed, batch, 40, chance))
    viewer, snapshots, cuts = None, 0, 0
    while not writing.done() or cuts < 5:
        viewer = await _resumed(feed, key, batch, viewer, frames=chance.randrange(1, 8))
        snapshots += len([f for f in viewer.of_type("snapshot") if f["part"] == 1])
        assert not viewer.of_type("reset")
        cuts += 1
    await writing
    await feed.projected()
    assert viewer is not None
    async with feed.viewer(key) as last:
        last.go_on_from(viewer)
        await last.subscribe([batch], after=viewer.cursor)
        await agree(feed, last, batch)
    assert snapshots == 1


async def _resumed(
    feed: FeedHarness, key: str, batch: UUID, before: FeedClient | None, frames: int
) -> FeedClient:
    """A new socket that goes on where the one before was cut, for so many frames."""
    async with feed.viewer(key) as viewer:
        if before is not None:
            viewer.go_on_from(before)
        await viewer.subscribe([batch], after=viewer.cursor)
        await viewer.until(lambda v: v.position >= 0)
        for _ in range(frames):
            try:
                await viewer.frame(deadline=0.2)
            except TimeoutError:
                break
        viewer.socket._response.close()  # no farewell: the connection is simply gone
        return viewer


async def _until_done(viewer: FeedClient, uploads: int) -> FeedClient:
    def done(viewer: FeedClient) -> bool:
        rows = viewer.rows["uploads"].values()
        return len(rows) == uploads and all(row["state"] == "completed" for row in rows)

    await viewer.until(done)
    return viewer


async def test_a_slow_reader_delays_no_other_and_catches_up(
    database_url: str, tmp_path: Path
) -> None:
    settings = {"feed_buffer": 20_000, "feed_tick": 0.01, "feed_heartbeat": 3600.0}
    async with open_feed(
        database_url, tmp_path, FeedLimits(drain_timeout=3600.0), **settings
    ) as feed:
        batch, key = await feed.batch(), await feed.key()
        ids = [await feed.upload(batch, f"{n:04}.jpg") for n in range(300)]
        await feed.projected()
        async with feed.viewer(key) as slow, feed.viewer(key) as quick:
            for viewer in (slow, quick):
                await viewer.subscribe([batch])
                await viewer.until_frame("snapshot")
            _transport(slow).pause_reading()
            rounds = 0
            # The fast reader sees everything until more was sent than all buffers hold.
            while len(feed.hub.registry.live) > 1:
                rounds += 1
                await asyncio.gather(*(feed.record(id, moved(rounds)) for id in ids))
                await quick.until(partial(_received, rounds))
            _transport(slow).resume_reading()
            await slow.until(partial(_received, rounds))
            assert slow.positions() == quick.positions() == await feed.positions(batch)
            await eventually(lambda: len(feed.hub.registry.live) == 2)


@pytest.mark.options(
    limits=FeedLimits(drain_timeout=0.3, close_timeout=0.1), feed_buffer=10_000, feed_tick=0.01
)
async def test_a_reader_that_never_wakes_is_sent_away_in_the_end(feed: FeedHarness) -> None:
    batch = await feed.batch()
    ids = [await feed.upload(batch, f"{n:04}.jpg") for n in range(300)]
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([batch])
        await viewer.until_frame("snapshot")
        _transport(viewer).pause_reading()
        done = 0
        while feed.hub.registry.clients:
            done += 1
            await asyncio.gather(*(feed.record(id, moved(done)) for id in ids))


def moved(done: int) -> FileProgressed:
    return FileProgressed(at=NOON, by=ALICE, phase="transfer", done=done, total=10**6)


def _received(done: int, viewer: FeedClient) -> bool:
    return all(row["received"] == done for row in viewer.rows["uploads"].values())


def _transport(viewer: FeedClient) -> asyncio.Transport:
    connection = viewer.socket._response.connection
    assert connection is not None
    assert connection.transport is not None
    return connection.transport
