"""Stories: given what happened, when a command runs, then this happens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from domain.batch.aggregate import Batch
from domain.batch.events import BatchEvent, BatchStarted
from domain.ids import upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.events import (
    AttemptStarted,
    FileReceived,
    UploadEvent,
    UploadQueued,
    UploadRegistered,
)
from domain.upload.failure import Failure

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BATCH = UUID("019b0000-0000-7000-8000-000000000001")
WORKER = "worker:one"
ALICE = "key:alice"
FILE = upload_id_for(BATCH, "photos/a.jpg")


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def registered(size: int | None = 100, **more: Any) -> UploadRegistered:
    known: dict[str, Any] = {
        "at": NOON,
        "by": ALICE,
        "batch": BATCH,
        "owner": "acme",
        "path": "photos/a.jpg",
        "pipeline": "default",
    }
    return UploadRegistered(**{**known, "size": size, **more})


def received(size: int = 100) -> FileReceived:
    return FileReceived(at=NOON, by=ALICE, size=size, blob="uploads/a")


def queued() -> UploadQueued:
    return UploadQueued(at=NOON, by="orchestrator")


def attempt(number: int = 1) -> AttemptStarted:
    return AttemptStarted(at=NOON, by=WORKER, number=number, worker=WORKER)


def given(first: UploadEvent, *history: UploadEvent, id: UUID = FILE) -> Upload:
    upload = Upload.begin(id, first)
    for event in history:
        upload = upload.evolve(event)
    return upload


def processing(number: int = 1, **more: Any) -> Upload:
    return given(registered(**more), received(), queued(), attempt(number))


def failure(message: str = "connection reset", *, permanent: bool = False) -> Failure:
    return Failure(step="checksum", error_type="OSError", message=message, permanent=permanent)


def started(**more: Any) -> BatchStarted:
    known: dict[str, Any] = {"at": NOON, "by": ALICE, "owner": "acme", "pipeline": "default"}
    return BatchStarted(**{**known, **more})


def given_batch(first: BatchStarted, *history: BatchEvent, id: UUID = BATCH) -> Batch:
    batch = Batch.begin(id, first)
    for event in history:
        batch = batch.evolve(event)
    return batch
