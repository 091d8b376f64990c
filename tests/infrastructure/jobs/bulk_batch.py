"""Batch of thousands of received files, recorded a few hundred at a time."""

from __future__ import annotations

from uuid import UUID, uuid4

from application.append import Append, StreamAppend
from application.commands import StartBatch
from application.handlers.batches import start_batch
from domain.file import FileDeclaration
from domain.upload.events import FileReceived
from tests.infrastructure.jobs.harness import ALICE, PipelineHarness, context, now

APPEND_UPLOADS = 500


async def start_bulk_batch(harness: PipelineHarness, owner: str, count: int) -> UUID:
    """Start a sealed batch; its files share one blob."""
    blob = f"uploads/{uuid4()}"
    await harness.blobs.put(blob, b"x")
    command = StartBatch(id=uuid4(), owner=owner)
    batch = (await start_batch(harness.log, command, context())).batch
    at = now()
    arrived = FileReceived(at=at, by=ALICE, size=1, blob=blob)
    for start in range(0, count, APPEND_UPLOADS):
        writes = []
        for number in range(start, min(start + APPEND_UPLOADS, count)):
            file = FileDeclaration(path=f"{number:06}.txt", size=1)
            upload, registered = batch.register_upload(file, b"", at=at, by=ALICE)
            writes.append(StreamAppend(upload, 0, (*registered, arrived)))
        await harness.log.append(Append(tuple(writes)))
    await harness.seal(batch.id)
    return batch.id
