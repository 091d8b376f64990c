"""Which batch a stream belongs to, by the first events of the streams."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from application.webhooks.following import Origin
from domain.batch.events import BatchStarted
from domain.upload.events import UploadRegistered, UploadRejected
from infrastructure.event_store.codec import Codec
from infrastructure.event_store.reading import read_firsts
from infrastructure.postgres.pool import Connection


async def origins_of(
    connection: Connection, streams: Collection[UUID], codec: Codec
) -> dict[UUID, Origin]:
    """What each of these streams belongs to, by its first event and that of its batch."""
    batch_of = {
        recorded.stream: recorded.event.batch
        if isinstance(recorded.event, UploadRegistered | UploadRejected)
        else recorded.stream
        for recorded in await read_firsts(connection, streams, codec)
    }
    origins: dict[UUID, Origin] = {}
    for recorded in await read_firsts(connection, set(batch_of.values()), codec):
        event = recorded.event
        if isinstance(event, BatchStarted):
            origins[recorded.stream] = Origin(
                recorded.stream, event.owner, event.label, event.notify
            )
    return {stream: origins[batch] for stream, batch in batch_of.items() if batch in origins}
