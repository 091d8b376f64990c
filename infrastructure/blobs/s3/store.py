"""Blobs in a bucket of any S3."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import structlog

from application.errors import Unavailable
from application.ports.blobs import BlobBusy, BlobMissing, BlobTooShort
from application.transfers.locks import BLOB_FOLDER, upload_id_from_blob_name
from infrastructure.blobs.s3.client import (
    Bucket,
    BucketUnusable,
    Location,
    S3Error,
    raising_s3_errors,
    translate_s3_errors,
)
from infrastructure.blobs.s3.locks import Lock, Locks
from infrastructure.blobs.s3.state import (
    BufferPool,
    CompleteBlob,
    IncompleteBlob,
    blob_name_of_tail,
    stat,
    stat_with_parts,
    tail_key,
)
from infrastructure.blobs.s3.writer import S3BlobWriter
from infrastructure.blobs.shared import validate_blob_name

# What lies in the bucket, looked through page by page, and what killed processes left there.

MAX_PAGES_PER_ROUND = (
    256  # a round; a bucket that has more of them is looked through in several rounds
)

_log = structlog.get_logger(__name__)


class Inventory:
    """The port `BlobInventory` over a bucket; only the blobs of uploads are looked at.

    Keys cannot be listed in even portions without knowing them, so a part is the page after the
    last one, wherever that ended.
    """

    def __init__(self, bucket: Bucket, locks: Locks) -> None:
        self._bucket = bucket
        self._locks = locks
        self._after = ""
        self._through = True

    async def stale(self, part: int, age: float) -> list[str]:
        before = datetime.now(UTC) - timedelta(seconds=age)
        with translate_s3_errors():
            if part == 0:
                self._through = False
                await self._free_uploads(before)
            if self._through:
                return []
            page, more = await self._bucket.page(f"{BLOB_FOLDER}/", self._after)
            self._after = page[-1].name if page and more else ""
            self._through = not more
        names = (blob_name_of_tail(found.name) for found in page if found.written < before)
        return list(dict.fromkeys(names))

    async def _free_uploads(self, before: datetime) -> None:
        """Delete the parts of uploads that began before this time and that no tail names."""
        freed = 0
        async for pending in self._bucket.pending(f"{BLOB_FOLDER}/"):
            if pending.began >= before or upload_id_from_blob_name(pending.name) is None:
                continue
            lock = await self._locks.acquire(pending.name)
            if lock is None:  # in use by a writer
                continue
            try:
                blob = (await stat(self._bucket, pending.name)).blob
                if isinstance(blob, IncompleteBlob) and blob.state.parts.upload == pending.upload:
                    continue
                await self._bucket.abort(pending.name, pending.upload)
                freed += 1
            finally:
                await lock.release()
        if freed:
            _log.info("s3_uploads_freed", count=freed)


# The bytes of a blob, streamed; a connection that breaks is taken up where it broke.

READ_CHUNK_BYTES = 256 * 1024
MAX_READ_TRIES = 4  # connections in a row that may break without a byte


class ObjectSource(msgspec.Struct, frozen=True):
    """Object to read from, and its size."""

    name: str
    size: int
    etag: str


async def stream_object(
    bucket: Bucket, name: str, start: int, end: int | None
) -> AsyncIterator[bytes]:
    """Yield the bytes from `start` up to `end`, exclusive. Raises BlobMissing, Unavailable."""
    with translate_s3_errors():
        source = await _source(bucket, name)
    end = source.size if end is None else min(end, source.size)
    failed = 0
    while start < end:
        try:
            async for chunk in _stream(bucket, source, start, end):
                start, failed = start + len(chunk), 0
                yield chunk
        except Unavailable:
            failed += 1
            if failed == MAX_READ_TRIES:
                raise


async def _source(bucket: Bucket, name: str) -> ObjectSource:
    match (await stat(bucket, name)).blob:
        case CompleteBlob(size, etag):
            return ObjectSource(name, size, etag)
        case IncompleteBlob(state, etag, tail) if not state.parts.size:
            return ObjectSource(tail_key(name), tail, etag)
        case IncompleteBlob():
            raise BlobMissing(f"the blob {name} is not finished")
        case _:
            raise BlobMissing(f"no blob {name} is stored")


async def _stream(
    bucket: Bucket, source: ObjectSource, start: int, end: int
) -> AsyncIterator[bytes]:
    """Yield the bytes of one connection; the object must be the same for all connections."""
    with translate_s3_errors(), raising_s3_errors():
        body, _ = await bucket.get(source.name, start, end, source.etag)
        async with body:
            while chunk := await body.read(READ_CHUNK_BYTES):
                yield chunk


LOCK_TIMEOUT = 5.0  # seconds that a deletion waits for a writer
MAX_CONCURRENT_PUTS = 16
LOCK_POLL_INTERVAL = 0.05  # seconds between two checks of the writer


class S3BlobStore:
    """The ports `BlobStore` and `BlobInventory`.

    Finished blobs are plain objects under the prefix, each with the name of its blob.

    A blob that is not finished can be read only while it has no part: S3 keeps the bytes of parts
    to itself until the upload is completed.
    """

    def __init__(self, bucket: Bucket, locks: Locks, *, largest: int) -> None:
        self._bucket = bucket
        self._locks = locks
        self._largest = largest
        self._memory = BufferPool()
        self._inventory = Inventory(bucket, locks)
        self._open: dict[str, S3BlobWriter] = {}

    async def append(self, name: str, offset: int) -> S3BlobWriter:
        lock = await self._locks.acquire(validate_blob_name(name))
        if lock is None:
            raise BlobBusy(name)
        try:
            with translate_s3_errors():
                found = await stat_with_parts(self._bucket, name)
            if found.size < offset:
                raise BlobTooShort(name, found.size, offset)
        except BaseException:
            await lock.release()
            raise
        writer = S3BlobWriter(
            self._bucket,
            name,
            found,
            offset,
            lock=lock,
            memory=self._memory,
            largest=self._largest,
            closed=lambda: self._closed(name, writer),
        )
        self._open[name] = writer
        return writer

    async def size(self, name: str) -> int:
        with translate_s3_errors():
            return (await stat(self._bucket, validate_blob_name(name))).size

    async def finish(self, name: str, size: int) -> None:
        """Finish the blob, with bytes that an open append has written and not synced."""
        if writer := self._open.get(validate_blob_name(name)):
            await writer.finish(size)
            return
        with translate_s3_errors():
            found = await stat(self._bucket, name)
            if isinstance(found.blob, CompleteBlob) and found.size == size:
                if found.tail is not None:
                    await self._bucket.delete(tail_key(name))
                return
        writer = await self.append(name, size)
        try:
            await writer.finish(size)
        finally:
            await writer.close()

    def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return stream_object(self._bucket, validate_blob_name(name), start, end)

    async def put(self, name: str, content: bytes) -> None:
        tail = tail_key(validate_blob_name(name))
        with translate_s3_errors():
            # Acknowledged once both are done: a tail would hide the object.
            await asyncio.gather(self._bucket.delete(tail), self._bucket.put(name, content))

    async def put_many(self, blobs: Mapping[str, bytes]) -> Mapping[str, str]:
        """Store several blobs concurrently; an error of one does not stop the others."""
        todo = iter(blobs.items())

        async def put_some() -> None:
            for name, content in todo:
                await self.put(name, content)

        await asyncio.gather(*(put_some() for _ in range(MAX_CONCURRENT_PUTS)))
        return {name: name for name in blobs}

    async def delete(self, name: str) -> None:
        """Delete the object, its tail and all parts, also those that no tail names."""
        async with self._to_ourselves(validate_blob_name(name)):
            with translate_s3_errors():
                await self._bucket.delete(tail_key(name))
                await self._bucket.delete(name)
                async for pending in self._bucket.pending(name):
                    if pending.name == name:
                        await self._bucket.abort(name, pending.upload)

    async def free_bytes(self) -> int | None:
        return None

    @property
    def parts(self) -> int:
        return MAX_PAGES_PER_ROUND

    async def stale(self, part: int, age: float) -> list[str]:
        return await self._inventory.stale(part, age)

    @asynccontextmanager
    async def _to_ourselves(self, name: str) -> AsyncIterator[Lock | None]:
        """Wait a little for a writer to release the lock: its later writes would be left behind."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LOCK_TIMEOUT
        lock = await self._locks.acquire(name)
        while lock is None and loop.time() < deadline:
            await asyncio.sleep(LOCK_POLL_INTERVAL)
            lock = await self._locks.acquire(name)
        try:
            yield lock
        finally:
            if lock is not None:
                await lock.release()

    def _closed(self, name: str, writer: S3BlobWriter) -> None:
        if self._open.get(name) is writer:
            del self._open[name]


# Opens the blob store of a bucket: the client, and a check that the bucket can be used.

CONNECT_TIMEOUT = 5  # seconds
READ_TIMEOUT = 60  # seconds; completing a large upload takes a while
MAX_ATTEMPTS = (
    5  # of each request, with growing pauses, for what may pass: 5xx, SlowDown, lost connections
)
MAX_CONNECTIONS = 100
REGION = "us-east-1"  # what stores without regions expect in signatures


@asynccontextmanager
async def open_s3_blobs(
    location: Location, locks: Locks, *, largest: int
) -> AsyncIterator[S3BlobStore]:
    """Open the blob store, after checking that the bucket can be read and written.

    `largest` is the size of the largest blob, in bytes. Raises BucketUnusable.
    """
    async with open_client(location) as bucket:
        await check_bucket(bucket)
        yield S3BlobStore(bucket, locks, largest=largest)


@asynccontextmanager
async def open_client(location: Location) -> AsyncIterator[Bucket]:
    """Open a client, closed at the end. Its library is slow to import: only users of S3 wait."""
    from aiobotocore.session import get_session  # type: ignore[import-untyped]

    session = get_session()
    region = location.region or session.get_config_variable("region") or REGION
    async with session.create_client(
        "s3", region_name=region, endpoint_url=location.endpoint, config=_config(location)
    ) as client:
        yield Bucket(client, location)


async def check_bucket(bucket: Bucket) -> None:
    """Write, list and delete an object. Raises BucketUnusable with the fix."""
    probe = f"~probe-{uuid4().hex}"
    try:
        await bucket.require()
        await bucket.put(probe, b"may be deleted")
        await bucket.delete(probe)
        async for _ in bucket.pending(probe):
            break
    except S3Error as refusal:
        raise BucketUnusable(*_message_and_hint(bucket.location, refusal)) from refusal
    except Unavailable as error:
        raise BucketUnusable(
            f"the bucket {bucket.location} cannot be used: {error}",
            "check endpoint and credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
        ) from error


def _message_and_hint(location: Location, refusal: S3Error) -> tuple[str, str]:
    if refusal.status == 404:
        return f"there is no bucket {location}", "create it, or name another one in UPTRAIL_BLOBS"
    if refusal.status in (301, 400) and not refusal.denied:
        return f"the bucket {location} refused: {refusal}", "name its region: ...?region=eu-west-1"
    if refusal.denied:
        return (
            f"access to the bucket {location} is denied: {refusal}",
            "it takes s3:GetObject, PutObject, DeleteObject, ListBucket, AbortMultipartUpload,"
            " ListMultipartUploadParts and ListBucketMultipartUploads",
        )
    return f"the bucket {location} refused: {refusal}", "the message is that of the store"


def _config(location: Location) -> Any:
    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]

    return AioConfig(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=MAX_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        # Many stores other than Amazon's do not know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": location.style},
    )
