"""Batches for the page, recorded as the events that make them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID, uuid4

from application.append import Append, StreamAppend
from application.ports.event_log import EventLog
from domain.batch.events import BatchCompleted, BatchProgressed, BatchSealed, BatchStarted
from domain.batch.state import outcome_of, percent_of
from domain.event import Event
from domain.ids import upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.events import (
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    FileProgressed,
    FileReceived,
    UploadCompleted,
    UploadEvent,
    UploadFailed,
    UploadQueued,
    UploadRegistered,
)

BY = "key:studio"
WORKERS = ("worker:ember", "worker:willow")
TROUBLE = (
    ("media-type", "MediaTypeMismatch", "declared image/jpeg, found text/html", True),
    ("checksum", "ChecksumMismatch", "SHA-256 differs from the declared one", True),
    ("thumbnail", "StepTimeout", "not done after 60 s", False),
)


class BatchFixture:
    """A batch under construction: events of its uploads, backdated."""

    def __init__(
        self,
        log: EventLog,
        label: str,
        *,
        minutes_ago: float,
        owner: str = "default",
        seed: int = 1,
        id: UUID | None = None,
    ) -> None:
        self.log = log
        self.id = id or uuid4()
        self.label = label
        self.owner = owner
        self.began = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        self.chance = random.Random(seed)
        self.uploads: dict[UUID, Upload] = {}

    @classmethod
    async def started(cls, log: EventLog, label: str = "Summer", **more: Any) -> Self:
        """Record a batch that began a minute ago."""
        scene = cls(log, label, **{"minutes_ago": 1, **more})
        await scene.start()
        return scene

    async def start(self) -> None:
        started = BatchStarted(
            at=self.began, by=BY, owner=self.owner, label=self.label, pipeline="default"
        )
        await self.record(self.id, started)

    async def record(self, stream: UUID, *events: Event) -> None:
        await self.log.append(Append((StreamAppend(stream, None, events, self.owner),)))

    async def add(self, path: str, size: int, life: Sequence[UploadEvent] = ()) -> UUID:
        """Record a file and its events so far."""
        id = upload_id_for(self.id, path, self.log.id_secret)
        registered = UploadRegistered(
            at=self.began,
            by=BY,
            batch=self.id,
            owner=self.owner,
            path=path,
            size=size,
            media_type="image/jpeg",
            pipeline="default",
        )
        await self.live(id, registered, *life)
        return id

    async def live(self, id: UUID, *events: UploadEvent) -> None:
        upload = self.uploads.get(id)
        for event in events:
            upload = Upload.begin(id, event) if upload is None else upload.evolve(event)
        assert upload is not None
        self.uploads[id] = upload
        await self.record(id, *events)

    async def progress(self) -> BatchProgressed:
        """Counts the set, as the orchestrator does."""
        counts = dict(Counter(upload.state for upload in self.uploads.values()))
        received = sum(upload.received for upload in self.uploads.values())
        total = sum(upload.size or 0 for upload in self.uploads.values())
        event = BatchProgressed(
            at=datetime.now(UTC),
            by="orchestrator",
            counts=counts,
            bytes_received=received,
            bytes_total=total,
            percent=percent_of(counts, received, total),
            through=await self.log.head(),
        )
        await self.record(self.id, event)
        return event

    async def finish(self, minutes: float) -> None:
        """Every upload has ended: the batch completes after so many minutes."""
        progress = await self.progress()
        at = self.began + timedelta(minutes=minutes)
        await self.record(
            self.id,
            BatchSealed(at=at, by=BY),
            BatchCompleted(
                at=at,
                by="orchestrator",
                outcome=outcome_of(progress.counts, None),
                counts=progress.counts,
                duration=60 * minutes,
            ),
        )

    def at(self, seconds: float) -> dict[str, Any]:
        return {"at": self.began + timedelta(seconds=seconds)}

    def transferring(self, size: int, share: float) -> Iterator[UploadEvent]:
        done = int(size * share)
        yield FileProgressed(
            **self.at(40), by=BY, phase="transfer", done=done, total=size, percent=100 * share
        )

    def received(self, size: int) -> Iterator[UploadEvent]:
        yield FileProgressed(
            **self.at(50), by=BY, phase="transfer", done=size, total=size, percent=100.0
        )
        yield FileReceived(**self.at(50), by=BY, size=size, blob=f"uploads/{uuid4()}")

    def queued(self, size: int) -> Iterator[UploadEvent]:
        yield from self.received(size)
        yield UploadQueued(**self.at(51), by="orchestrator")

    def attempt(self, number: int, seconds: float) -> UploadEvent:
        worker = self.chance.choice(WORKERS)
        return AttemptStarted(**self.at(seconds), by=worker, number=number, worker=worker)

    def processing(self, size: int, step: str, percent: float) -> Iterator[UploadEvent]:
        yield from self.queued(size)
        yield self.attempt(1, 52)
        done = int(percent)
        yield FileProgressed(
            **self.at(53),
            by=WORKERS[0],
            phase=step,
            attempt=1,
            done=done,
            total=100,
            percent=percent,
        )

    def completed(self, size: int, *, after_failure: bool = False) -> Iterator[UploadEvent]:
        yield from self.queued(size)
        number = 1
        if after_failure:
            yield self.attempt(1, 52)
            yield self.failure(1, 53, retry_in=2.4)
            number = 2
        yield self.attempt(number, 56)
        yield AttemptSucceeded(**self.at(57), by=WORKERS[0], number=number, duration=0.84)
        yield UploadCompleted(**self.at(57), by=WORKERS[0])

    def retrying(self, size: int, seconds_from_now: float) -> Iterator[UploadEvent]:
        """Failed twice, and is to be tried again soon."""
        now = (datetime.now(UTC) - self.began).total_seconds()
        yield from self.queued(size)
        yield self.attempt(1, now - 9)
        yield self.failure(1, now - 8, retry_in=2.1)
        yield self.attempt(2, now - 5)
        yield self.failure(2, now - 4, retry_in=4 + seconds_from_now)

    def failed(self, size: int, kind: int) -> Iterator[UploadEvent]:
        step, error_type, message, permanent = TROUBLE[kind]
        yield from self.queued(size)
        tries = 1 if permanent else 3
        for number in range(1, tries + 1):
            yield self.attempt(number, 52 + 9 * number)
            last = number == tries
            yield AttemptFailed(
                **self.at(58 + 9 * number),
                by=WORKERS[1],
                number=number,
                step=step,
                error_type=error_type,
                message=message,
                permanent=permanent,
                duration=0.31 if permanent else 60.0,
                retry_at=None if last else self.began + timedelta(seconds=60 + 9 * number),
            )
        yield UploadFailed(**self.at(90), by=WORKERS[1], step=step, message=message)

    def failure(self, number: int, seconds: float, retry_in: float) -> UploadEvent:
        at = self.began + timedelta(seconds=seconds)
        return AttemptFailed(
            at=at,
            by=WORKERS[1],
            number=number,
            step="thumbnail",
            error_type="ConnectionResetError",
            message="the thumbnail process ended early: connection reset by peer",
            permanent=False,
            duration=1.27,
            retry_at=at + timedelta(seconds=retry_in),
        )
