"""Progress of many uploads, recorded at a steady rate from a process of its own."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec

from application.append import Append, StreamAppend
from domain.batch.aggregate import Batch
from domain.batch.events import BatchStarted
from domain.event import Event
from domain.file import FileDeclaration
from domain.upload.events import FileProgressed
from infrastructure.event_store.committer import GroupCommitter

BY = OWNER = "benchmark"
SIZE = 100_000_000  # bytes of each upload
APPENDS = 100  # a second: the events of ten milliseconds travel together
MOST_WAITING = 50  # appends that are not committed yet; beyond it the rate falls, and is told


class Scene(msgspec.Struct, frozen=True):
    """The batches that are watched, each with its uploads."""

    batches: list[UUID]
    uploads: list[list[UUID]]

    def in_turn(self) -> list[UUID]:
        """All uploads, such that neighbours are of different batches."""
        return [id for turn in zip(*self.uploads, strict=True) for id in turn]


async def set_up(url: str, batches: int, uploads: int) -> Scene:
    """So many batches of so many registered uploads each."""
    scene = Scene([], [])
    async with GroupCommitter(url) as committer:
        for _ in range(batches):
            at, id = datetime.now(UTC), uuid4()
            begun = BatchStarted(at=at, by=BY, owner=OWNER, pipeline="default")
            files = [FileDeclaration(path=f"{n:03}.bin", size=SIZE) for n in range(uploads)]
            members = [
                Batch.begin(id, begun).register_upload(file, b"", at=at, by=BY) for file in files
            ]
            writes = [
                StreamAppend(id, 0, (begun,)),
                *(StreamAppend(upload, 0, e) for upload, e in members),
            ]
            await committer.append(Append(tuple(writes)))
            scene.batches.append(id)
            scene.uploads.append([upload for upload, _ in members])
    return scene


async def pour(
    url: str, uploads: Sequence[UUID], rate: int, events: int, before: int
) -> array[float]:
    """Records the events in turn over the uploads; when each was committed, on the monotonic clock.

    Event number n is the step `n // len(uploads)` of upload `n % len(uploads)`; the bytes it tells
    are `before`, that step, and one, by which a watcher knows it.
    """
    committed = array("d", bytes(8 * events))
    size = max(1, rate // APPENDS)
    waiting = asyncio.Semaphore(MOST_WAITING)
    async with GroupCommitter(url) as committer, asyncio.TaskGroup() as tasks:

        async def record(first: int) -> None:
            numbers = range(first, min(first + size, events))
            at = datetime.now(UTC)
            writes = [_step(uploads, number, before, at) for number in numbers]
            await committer.append(Append(tuple(writes)))
            now = time.monotonic()
            for number in numbers:
                committed[number] = now
            waiting.release()

        begun = time.monotonic()
        for first in range(0, events, size):
            await asyncio.sleep(max(0.0, begun + first / rate - time.monotonic()))
            await waiting.acquire()
            tasks.create_task(record(first))
    return committed


def _step(uploads: Sequence[UUID], number: int, before: int, at: datetime) -> StreamAppend:
    done = before + number // len(uploads) + 1
    percent = 100 * done / SIZE
    moved: Event = FileProgressed(
        at=at, by=BY, phase="transfer", done=done, total=SIZE, percent=percent
    )
    return StreamAppend(uploads[number % len(uploads)], None, (moved,))
