"""Blobs in S3 when any single request is the last one, or its answer is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest

from application.errors import Unavailable
from application.ports.blobs import BlobStore
from infrastructure.blobs.s3.client import MIB, Bucket, Location
from infrastructure.blobs.s3.store import S3BlobStore, open_client
from tests.contracts.blob_store import NAME, content
from tests.infrastructure.blobs.in_process_locks import InProcessLocks
from tests.infrastructure.blobs.s3_servers import BUCKET
from tests.infrastructure.blobs.test_s3 import GIB, noise, objects_in, opened_at, uploads_in

WHOLE = noise(6 * MIB + 5)  # a part and a tail
PIECE = 2 * MIB
MAX_CLIENT_TRIES = 3  # a fault happens once


class Killed(BaseException):
    """The process ends here: no further request is made."""


class FaultyBucket(Bucket):
    """A bucket of which one request, by number, meets a fault.

    `killed`: the request is carried out, its answer is lost, and none follows. `lost`: it is
    carried out, and an error is reported. `refused`: it is not carried out, and an error is
    reported. The client's own retries are over by then.
    """

    faulty = -1
    fault = ""
    count = 0

    async def _ask(self, operation: str, name: str, **arguments: Any) -> Any:
        number, self.count = self.count, self.count + 1
        if self.fault == "killed" and number > self.faulty:
            raise Killed
        if number == self.faulty and self.fault == "refused":
            raise Unavailable("the request was refused")
        answer = await super()._ask(operation, name, **arguments)
        if number == self.faulty and self.fault == "killed":
            raise Killed
        if number == self.faulty:
            raise Unavailable("the answer was lost")
        return answer


async def _send(store: BlobStore, acknowledged: list[int]) -> None:
    """Send what is not acknowledged yet, and note what is; the last entry means finished."""
    writer = await store.append(NAME, acknowledged[-1])
    try:
        for start in range(acknowledged[-1], len(WHOLE), PIECE):
            await writer.write(WHOLE[start : start + PIECE])
            acknowledged.append(await writer.sync())
        await store.finish(NAME, len(WHOLE))
        acknowledged.append(len(WHOLE) + 1)
    finally:
        await writer.close()


async def _meets_fault(fault: str, number: int, location: Location) -> bool:
    """Return whether there was a request of this number; check what the next process finds."""
    acknowledged = [0]
    async with open_client(location) as bucket:
        faulty = FaultyBucket(bucket._client, location)
        faulty.fault, faulty.faulty = fault, number
        store = S3BlobStore(faulty, InProcessLocks(), largest=GIB)
        for _ in range(MAX_CLIENT_TRIES):
            if acknowledged[-1] <= len(WHOLE):
                with suppress(Unavailable, Killed):
                    await _send(store, acknowledged)
        await asyncio.sleep(0)
    async with opened_at(location) as again, open_client(location) as bucket:
        promised = min(acknowledged[-1], len(WHOLE))
        assert await again.size(NAME) >= promised
        if acknowledged[-1] <= len(WHOLE):
            await _send(again, acknowledged)
        assert await content(again, NAME) == WHOLE
        assert await objects_in(bucket) == [NAME]
        await again.stale(0, -3600)
        assert await uploads_in(bucket) == []
    return faulty.count > number


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["killed", "lost", "refused"])
async def test_acknowledged_bytes_outlive_a_fault_of_any_request(moto: str, fault: str) -> None:
    number = 0
    while True:
        location = Location(
            bucket=BUCKET, prefix=f"test/{uuid4().hex}", endpoint=moto, style="path"
        )
        if not await _meets_fault(fault, number, location):
            break
        number += 1
    assert number > 8
