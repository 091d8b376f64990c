"""A batch of thousands of files that have all arrived, recorded a few hundred at a time."""

from __future__ import annotations

from uuid import UUID, uuid4

from application.append import Append, StreamAppend
from application.commands import StartBatch
from application.handlers.batches import start_batch
from domain.file import FileDeclaration
from domain.upload.events import FileReceived
from tests.infrastructure.jobs.plant import ALICE, Plant, context, now

AT_ONCE = 500


async def crowd(plant: Plant, owner: str, count: int) -> UUID:
    """A sealed batch; its files share their bytes, which nobody minds."""
    blob = f"uploads/{uuid4()}"
    await plant.blobs.put(blob, b"x")
    command = StartBatch(id=uuid4(), owner=owner)
    batch = (await start_batch(plant.log, command, context())).batch
    at = now()
    arrived = FileReceived(at=at, by=ALICE, size=1, blob=blob)
    for start in range(0, count, AT_ONCE):
        writes = []
        for number in range(start, min(start + AT_ONCE, count)):
            file = FileDeclaration(path=f"{number:06}.txt", size=1)
            upload, registered = batch.register_upload(file, b"", at=at, by=ALICE)
            writes.append(StreamAppend(upload, 0, (*registered, arrived)))
        await plant.log.append(Append(tuple(writes)))
    await plant.seal(batch.id)
    return batch.id
