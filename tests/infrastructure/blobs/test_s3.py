from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import time

import pytest
from msgspec.structs import replace

from application.ports.blobs import BlobBusy, BlobMissing, BlobTooShort
from infrastructure.blobs.s3.client import MIB, Bucket, BucketUnusable, Location
from infrastructure.blobs.s3.locks import Locks, PostgresLocks
from infrastructure.blobs.s3.state import tail_key
from infrastructure.blobs.s3.store import S3BlobStore, open_client, open_s3_blobs
from tests.contracts.blob_store import NAME, BlobStoreContract, Opener, appended, content
from tests.infrastructure.blobs.in_process_locks import InProcessLocks

GIB = 1024 * MIB


@asynccontextmanager
async def opened_at(location: Location, locks: Locks | None = None) -> AsyncIterator[S3BlobStore]:
    async with open_s3_blobs(location, locks or InProcessLocks(), largest=GIB) as store:
        yield store


async def objects_in(bucket: Bucket) -> list[str]:
    found, more = await bucket.page("", "")
    assert not more
    return [one.name for one in found]


async def uploads_in(bucket: Bucket) -> list[str]:
    return [pending.upload async for pending in bucket.pending("")]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


class TestS3BlobStore(BlobStoreContract):
    @pytest.fixture
    def opened(self, any_location: Location) -> Opener:
        return lambda: opened_at(any_location)


async def test_a_blob_of_many_parts_comes_back_whole_and_is_one_object(
    any_location: Location,
) -> None:
    location = any_location

    whole = noise(23 * MIB + 17)
    async with opened_at(location) as store, open_client(location) as bucket:
        writer = await store.append(NAME, 0)
        for start in range(0, len(whole), 300_000):
            await writer.write(whole[start : start + 300_000])
        await store.finish(NAME, len(whole))
        await writer.close()
        assert await content(store, NAME) == whole
        assert await content(store, NAME, 7 * MIB, 12 * MIB) == whole[7 * MIB : 12 * MIB]
        assert await objects_in(bucket) == [NAME]
        assert await uploads_in(bucket) == []


@pytest.mark.parametrize(
    ("cut", "finished"),
    [
        *((cut, False) for cut in (0, 1, 5 * MIB, 7 * MIB, 10 * MIB, 11 * MIB + 9)),
        *((cut, True) for cut in (0, 5 * MIB - 1, 7 * MIB)),
    ],
)
async def test_an_append_begins_anywhere(location: Location, cut: int, finished: bool) -> None:
    before, after = noise(11 * MIB + 10), noise(6 * MIB)
    async with opened_at(location) as store:
        await appended(store, 0, before)
        if finished:
            await store.finish(NAME, len(before))
    async with opened_at(location) as store, open_client(location) as bucket:
        await appended(store, cut, after[:100])
        assert await store.size(NAME) == cut + 100
        await appended(store, cut + 100, after[100:])
        await store.finish(NAME, cut + len(after))
        assert await content(store, NAME) == before[:cut] + after
        assert await objects_in(bucket) == [NAME]
        assert await uploads_in(bucket) == []


async def test_what_was_written_too_much_is_cut_off_at_the_end(location: Location) -> None:
    whole = noise(8 * MIB)
    async with opened_at(location) as store:
        await appended(store, 0, whole)
        await store.finish(NAME, 3 * MIB)
        assert await content(store, NAME) == whole[: 3 * MIB]


async def test_bytes_of_an_unfinished_blob_are_not_read_for_a_whole_one(location: Location) -> None:
    async with opened_at(location) as store:
        await appended(store, 0, noise(6 * MIB))
        with pytest.raises(BlobMissing):
            await content(store, NAME)


async def test_a_deleted_blob_leaves_no_part_behind(location: Location) -> None:
    async with opened_at(location) as store, open_client(location) as bucket:
        await appended(store, 0, noise(6 * MIB))
        assert len(await uploads_in(bucket)) == 1
        await store.delete(NAME)
        assert await uploads_in(bucket) == []
        assert await objects_in(bucket) == []


async def test_deleting_a_blob_spares_another_whose_name_begins_with_its_name(
    any_location: Location,
) -> None:
    whole, longer = noise(6 * MIB), f"{NAME}.0"
    async with opened_at(any_location) as store:
        writer = await store.append(longer, 0)
        await writer.write(whole)
        await writer.sync()
        await writer.close()
        await store.delete(NAME)
        await store.finish(longer, len(whole))

        assert await content(store, longer) == whole


async def test_an_append_that_ends_before_it_synced_leaves_no_part_behind(
    location: Location,
) -> None:
    async with opened_at(location) as store, open_client(location) as bucket:
        writer = await store.append(NAME, 0)
        await writer.write(noise(11 * MIB))
        await writer.close()
        assert await uploads_in(bucket) == []
        assert await store.size(NAME) == 0


async def test_a_sync_covers_what_was_written_before_it_while_writing_goes_on(
    location: Location,
) -> None:
    whole = noise(16 * MIB)
    async with opened_at(location) as store:
        writer = await store.append(NAME, 0)
        syncs = []
        for start in range(0, len(whole), MIB):
            await writer.write(whole[start : start + MIB])
            syncs.append((writer.size, asyncio.create_task(writer.sync())))
        for size, sync in syncs:
            assert await sync >= size
        await writer.close()
        assert await store.size(NAME) == len(whole)
        await store.finish(NAME, len(whole))
        assert await content(store, NAME) == whole


async def test_a_tail_is_not_stored_over_and_over_for_a_slow_sender(location: Location) -> None:
    async with opened_at(location) as store:
        writer = await store.append(NAME, 0)
        kept = 0
        seen = set()
        for _ in range(100):
            await writer.write(bytes(20_000))
            durable = await writer.checkpoint()
            assert kept <= durable <= writer.size
            kept = durable
            seen.add(durable)
        assert len(seen) < 30
        assert await writer.sync() == writer.size
        await writer.close()


async def test_two_processes_never_write_one_blob(location: Location, database_url: str) -> None:
    async with (
        PostgresLocks(database_url) as here,
        PostgresLocks(database_url) as there,
        opened_at(location, here) as one,
        opened_at(location, there) as other,
    ):
        writer = await one.append(NAME, 0)
        for store in (one, other):
            with pytest.raises(BlobBusy):
                await store.append(NAME, 0)
        await writer.close()
        await appended(other, 0, b"bytes")


async def test_uploads_that_nobody_knows_are_freed_and_known_ones_are_not(
    location: Location,
) -> None:
    whole = noise(6 * MIB)
    async with opened_at(location) as store, open_client(location) as bucket:
        await appended(store, 0, whole)
        for name in (NAME, "uploads/0192f0c1-5c1e-7000-8000-00000000000b"):
            lost = await bucket.create(name)
            await bucket.upload(name, lost, 1, b"left behind")
        other = await bucket.create("uploads/not-one-of-ours")
        tomorrow = -(datetime.now(UTC) + timedelta(days=1)).timestamp() + time()
        assert await store.stale(0, tomorrow) == [NAME]
        assert await store.stale(1, tomorrow) == []
        assert await store.stale(0, 3600) == []
        assert len(await uploads_in(bucket)) == 2
        await bucket.abort("uploads/not-one-of-ours", other)
        await store.finish(NAME, len(whole))
        assert await content(store, NAME) == whole


async def test_parts_or_tails_that_were_lost_are_reported(location: Location) -> None:
    whole = noise(6 * MIB)
    async with opened_at(location) as store, open_client(location) as bucket:
        await appended(store, 0, whole)
        tail = await bucket.head(tail_key(NAME))
        assert tail is not None
        await bucket.put(tail_key(NAME), b"shorter", tail.metadata)
        with pytest.raises(BlobTooShort) as short:
            await store.append(NAME, len(whole))
        assert short.value.stored == 5 * MIB + len(b"shorter")

        await bucket.abort(NAME, (await uploads_in(bucket))[0])
        with pytest.raises(BlobTooShort) as lost:
            await store.append(NAME, 5 * MIB)
        assert lost.value.stored == 0
        await appended(store, 0, b"from the start")
        await store.finish(NAME, 14)
        assert await content(store, NAME) == b"from the start"


async def test_a_part_that_was_replaced_is_found_out(location: Location) -> None:
    whole = noise(11 * MIB)
    async with opened_at(location) as store, open_client(location) as bucket:
        await appended(store, 0, whole)
        await bucket.upload(NAME, (await uploads_in(bucket))[0], 1, bytes(5 * MIB))
        with pytest.raises(BlobTooShort):
            await store.append(NAME, len(whole))


async def test_a_bucket_that_cannot_be_used_is_told_at_the_start(seaweed: str) -> None:
    async def opening(location: Location) -> str:
        with pytest.raises(BucketUnusable) as refused:
            async with opened_at(location):
                pass
        assert refused.value.hint
        return str(refused.value)

    absent = Location(bucket="no-such-bucket", endpoint=seaweed, style="path")
    assert "there is no bucket s3://no-such-bucket" in await opening(absent)
    nobody = replace(absent, endpoint="http://127.0.0.1:9")
    assert "cannot be used" in await opening(nobody)


async def test_access_that_is_denied_is_told_at_the_start(
    seaweed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(BucketUnusable, match="denied"):
        async with opened_at(Location(bucket="uptrail-test", endpoint=seaweed, style="path")):
            pass


def test_who_keeps_bytes_on_a_disk_does_not_load_the_client_of_s3() -> None:
    code = """
import sys
import infrastructure.blobs.local.store, infrastructure.blobs.s3.store
import interfaces.bootstrap.container
sys.exit(any(name.startswith(("aiobotocore", "botocore")) for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
