"""Progress events of many uploads, recorded at a steady rate by a separate process."""

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
APPENDS = 100  # per second: one append holds the events of ten milliseconds
MAX_PENDING_APPENDS = 50  # uncommitted appends; beyond it the rate falls


class WatchedBatches(msgspec.Struct, frozen=True):
    """Batches that clients watch, with the uploads of each."""

    batches: list[UUID]
    uploads: list[list[UUID]]

    def interleaved_uploads(self) -> list[UUID]:
        """Return all uploads, neighbours from different batches."""
        return [id for column in zip(*self.uploads, strict=True) for id in column]


async def set_up(url: str, batches: int, uploads: int) -> WatchedBatches:
    """Create the batches, each with `uploads` registered uploads."""
    watched = WatchedBatches([], [])
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
            watched.batches.append(id)
            watched.uploads.append([upload for upload, _ in members])
    return watched


async def record_progress(
    url: str, uploads: Sequence[UUID], rate: int, events: int, before: int
) -> array[float]:
    """Record events for the uploads in rotation; return commit times (monotonic clock).

    Event number n is the step `n // len(uploads)` of upload `n % len(uploads)`; its byte count
    is `before` + step + 1, which identifies the event to a watcher.
    """
    committed = array("d", bytes(8 * events))
    size = max(1, rate // APPENDS)
    waiting = asyncio.Semaphore(MAX_PENDING_APPENDS)
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
