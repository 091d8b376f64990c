"""Transfers beside an append that is recorded after its client has given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

import pytest

from application.append import append_to_stream
from application.errors import OutcomeUnknown
from application.transfers.locks import upload_blob_name
from application.transfers.transfers import Actor, AppendRequest, TransferLimits, Transfers
from domain.event import topic_of
from tests.application.test_attempts import ScriptedWire
from tests.builders import FILE, NOON, registered
from tests.fakes import NoRemotePreemption, unlimited_quotas
from tests.memory.blobs import Disk, MemoryBlobStore
from tests.memory.database import MemoryDatabase
from tests.memory.event_log import memory_event_log, whole_log
from tests.simulation.event_loop import SimulatedLoop

SENDER = Actor("key:sender")


def now() -> datetime:
    return NOON


async def body(chunk: bytes, *, lasts: float = 0.0) -> AsyncIterator[bytes]:
    """Yield a chunk, and end after so many seconds."""
    yield chunk
    await asyncio.sleep(lasts)


def test_bytes_are_not_dropped_under_an_append_that_still_counts_them() -> None:
    async def story() -> None:
        database, disk, wire = MemoryDatabase(), Disk(), ScriptedWire()
        log = await memory_event_log(database, wire).__aenter__()
        await log.append(append_to_stream(FILE, 0, registered(4)))
        clock = asyncio.get_running_loop().time
        transfers = Transfers(
            log,
            MemoryBlobStore(disk),
            NoRemotePreemption(),
            quotas=unlimited_quotas(clock),
            limits=TransferLimits(max_file_size=100, min_free_bytes=0, progress_interval=1000.0),
            now=now,
            clock=clock,
        )
        request = AppendRequest(upload=FILE, offset=0, length=4)
        wire.late = 60.0  # the first transfer is recorded a minute after it was given up
        with pytest.raises(OutcomeUnknown):
            await transfers.receive(request, body(b"abcd"), SENDER)

        request = AppendRequest(upload=FILE, offset=0, length=2)
        await transfers.receive(request, body(b"ab", lasts=120.0), SENDER)

        assert (await log.upload(FILE)).received == 2
        assert disk.blobs[upload_blob_name(FILE)].content == b"ab"
        recorded = [topic_of(one.event) for one in await whole_log(database)]
        assert "upload.file_received" not in recorded

    loop = SimulatedLoop(1)
    loop.run_until_complete(story())
    loop.close()
