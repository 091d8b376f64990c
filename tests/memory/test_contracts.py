"""The in-memory adapters keep the contracts of their ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from application.ports.event_log import EventLog
from tests.contracts.blob_store import BlobStoreContract, Opener
from tests.contracts.event_log import EventLogContract, OpenLog
from tests.contracts.rounds import OpenRounds, RoundsContract
from tests.memory.blobs import Disk, MemoryBlobStore
from tests.memory.database import MemoryDatabase
from tests.memory.event_log import memory_event_log
from tests.memory.rounds_harness import memory_rounds


class TestMemoryEventLog(EventLogContract):
    @pytest.fixture
    def open_log(self) -> OpenLog:
        database = MemoryDatabase()

        @asynccontextmanager
        async def opened() -> AsyncIterator[EventLog]:
            async with memory_event_log(database) as log:
                yield log

        return opened


class TestMemoryRounds(RoundsContract):
    @pytest.fixture
    def open_rounds(self) -> OpenRounds:
        return memory_rounds


class TestMemoryBlobStore(BlobStoreContract):
    @pytest.fixture
    def opened(self) -> Opener:
        disk = Disk()

        @asynccontextmanager
        async def opened() -> AsyncIterator[MemoryBlobStore]:
            yield MemoryBlobStore(disk)

        return opened
