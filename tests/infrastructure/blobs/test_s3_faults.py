"""What happens to bytes in S3 when processes, lines and servers fail in the middle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from application.errors import Unavailable
from application.ports.blobs import BlobStore
from infrastructure.blobs.s3.client import MIB, Bucket, Location
from infrastructure.blobs.s3.locks import PostgresLocks
from infrastructure.blobs.s3.store import S3BlobStore, open_client
from tests.contracts.blob_store import NAME, appended, content
from tests.infrastructure.blobs.in_process_locks import InProcessLocks
from tests.infrastructure.blobs.s3_servers import Line
from tests.infrastructure.blobs.test_s3 import GIB, noise, objects_in, opened_at, uploads_in
from tests.support import eventually

WHOLE = noise(11 * MIB + 5)
NO_END = 1_000_000


class Killed(BaseException):
    """The process ends here: no further request is made."""


class MortalBucket(Bucket):
    """Makes so many requests, and then no more."""

    left = NO_END

    async def _ask(self, operation: str, name: str, **arguments: Any) -> Any:
        if self.left <= 0:
            raise Killed
        self.left -= 1
        return await super()._ask(operation, name, **arguments)


@asynccontextmanager
async def failing(location: Location) -> AsyncIterator[tuple[Line, S3BlobStore]]:
    """A store, and the line by which it reaches its bucket."""
    async with (
        Line(str(location.endpoint)).open() as line,
        opened_at(replace(location, endpoint=line.url)) as store,
    ):
        yield line, store


async def _sent(store: BlobStore, offset: int, acknowledged: list[int]) -> None:
    """Sends the rest of the file, and notes what was acknowledged."""
    writer = await store.append(NAME, offset)
    for start in range(offset, len(WHOLE), 4 * MIB):
        await writer.write(WHOLE[start : start + 4 * MIB])
        acknowledged.append(await writer.sync())
    await store.finish(NAME, len(WHOLE))
    acknowledged.append(len(WHOLE) + 1)  # finished
    await writer.close()


async def _killed_after(requests: int, location: Location) -> bool:
    """Whether the process died before it was through; checks what the next one finds."""
    acknowledged = [0]
    async with open_client(location) as bucket:
        mortal = MortalBucket(bucket._client, location)
        mortal.left = requests
        died = False
        try:
            await _sent(S3BlobStore(mortal, InProcessLocks(), largest=GIB), 0, acknowledged)
        except Killed:
            died = True
        await asyncio.sleep(0)
    async with opened_at(location) as store, open_client(location) as bucket:
        promised = min(acknowledged[-1], len(WHOLE))
        assert await store.size(NAME) >= promised
        if acknowledged[-1] <= len(WHOLE):
            await _sent(store, promised, acknowledged)
        assert await content(store, NAME) == WHOLE
        assert await objects_in(bucket) == [NAME]
        await store.stale(0, -3600)
        assert await uploads_in(bucket) == []
    return died


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_acknowledged_bytes_outlive_a_process_killed_between_any_two_requests(
    location: Location,
) -> None:
    requests = 0
    while await _killed_after(requests, replace(location, prefix=f"{location.prefix}-{requests}")):
        requests += 1
    assert requests > 10


async def test_another_process_goes_on_after_kill_minus_9(
    location: Location, database_url: str
) -> None:
    code = f"""
import asyncio, os
from infrastructure.blobs.s3.client import Location
from infrastructure.blobs.s3.locks import PostgresLocks
from infrastructure.blobs.s3.store import open_s3_blobs

async def main():
    location = Location(bucket={location.bucket!r}, prefix={location.prefix!r},
                        endpoint={location.endpoint!r}, style="path")
    async with open_s3_blobs(location, PostgresLocks({database_url!r}), largest=2**30) as store:
        writer = await store.append({NAME!r}, 0)
        await writer.write(bytes(7_000_000))
        await writer.sync()
        await writer.write(bytes(9_000_000))
        await writer._arrived()
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9

    async with (
        PostgresLocks(database_url) as locks,
        opened_at(location, locks) as store,
        open_client(location) as bucket,
    ):
        assert await store.size(NAME) == 7_000_000
        await appended(store, 7_000_000, b"x" * 6_000_000)
        await store.finish(NAME, 13_000_000)
        assert await content(store, NAME) == bytes(7_000_000) + b"x" * 6_000_000
        assert await uploads_in(bucket) == []


async def test_a_server_that_is_slow_down_for_a_while_costs_only_time(location: Location) -> None:
    async with failing(location) as (line, store):
        tries: dict[str, int] = {}

        def fault(request: web.BaseRequest) -> str | None:
            """Every request fails once, one way or the other."""
            what = f"{request.method} {request.raw_path}"
            tries[what] = tries.get(what, 0) + 1
            if tries[what] > 1:
                return None
            return "lost" if request.method == "PUT" else "error"

        line.fault = fault
        await appended(store, 0, WHOLE[: 6 * MIB])
        await appended(store, 6 * MIB, WHOLE[6 * MIB :])
        await store.finish(NAME, len(WHOLE))
        assert await content(store, NAME) == WHOLE


async def test_a_part_that_cannot_be_stored_is_told_and_what_was_durable_stays(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.blobs.s3.store.MAX_ATTEMPTS", 2)

    async with failing(location) as (line, store):
        await appended(store, 0, WHOLE[: 6 * MIB])
        line.fault = lambda request: "error" if "partNumber" in request.raw_path else None
        writer = await store.append(NAME, 6 * MIB)
        with pytest.raises(Unavailable):
            await writer.write(WHOLE[6 * MIB :])
            await writer.sync()
        with pytest.raises(Unavailable):
            await writer.sync()
        with pytest.raises(Unavailable):
            await store.finish(NAME, len(WHOLE))
        await writer.close()
        line.fault = lambda request: None
        assert await store.size(NAME) == 6 * MIB
        await appended(store, 6 * MIB, WHOLE[6 * MIB :])
        await store.finish(NAME, len(WHOLE))
        assert await content(store, NAME) == WHOLE


async def test_a_download_goes_on_where_its_connection_broke(location: Location) -> None:
    async with opened_at(location) as store:
        await store.put(NAME, WHOLE)
    async with failing(location) as (line, store):
        line.cut_after = 4 * MIB
        assert await content(store, NAME) == WHOLE
        assert sum(one.startswith("GET") and NAME in one for one in line.seen) == 3


async def test_a_writer_that_was_overtaken_never_stores_over_the_other(location: Location) -> None:
    """Its lock was lost with the connection to the database, and it has not noticed yet."""

    async with opened_at(location) as one, opened_at(location) as other:
        zombie = await one.append(NAME, 0)
        await zombie.write(b"old")
        await appended(other, 0, b"new, and longer")
        with pytest.raises(Unavailable):
            await zombie.sync()
        await zombie.close()
        await other.finish(NAME, 15)
        assert await content(other, NAME) == b"new, and longer"


async def _free(locks: PostgresLocks) -> bool:
    lock = await locks.acquire(NAME)
    if lock is not None:
        await lock.release()
    return lock is not None


async def test_a_writer_whose_lock_was_lost_stores_nothing_more(
    location: Location, database_url: str
) -> None:
    async with (
        PostgresLocks(database_url) as locks,
        PostgresLocks(database_url) as others,
        opened_at(location, locks) as store,
        opened_at(location, others) as other,
    ):
        writer = await store.append(NAME, 0)
        await writer.write(b"old")
        assert locks._connection is not None
        await locks._connection.close()
        await eventually(lambda: _free(others))
        await appended(other, 0, b"new")
        for attempt in (writer.sync(), store.finish(NAME, 3)):
            with pytest.raises(Unavailable):
                await attempt
        await writer.close()
        await other.finish(NAME, 3)
        assert await content(other, NAME) == b"new"
