"""Opens the blob store of a bucket: the client, and a check that the bucket can be used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from application.errors import Unavailable
from infrastructure.blobs.s3.bucket import Bucket
from infrastructure.blobs.s3.failures import BadBlobStore, Refusal
from infrastructure.blobs.s3.location import Location
from infrastructure.blobs.s3.locks import Locks
from infrastructure.blobs.s3.store import S3BlobStore

CONNECT_TIMEOUT = 5  # seconds
READ_TIMEOUT = 60  # seconds; completing a large upload takes a while
TRIES = (
    5  # of each request, with growing pauses, for what may pass: 5xx, SlowDown, lost connections
)
CONNECTIONS = 100
REGION = "us-east-1"  # what stores without regions expect in signatures


@asynccontextmanager
async def open_s3_blobs(
    location: Location, locks: Locks, *, largest: int
) -> AsyncIterator[S3BlobStore]:
    """The blob store, once it is certain that the bucket can be read and written.

    `largest` is the size of the largest blob, in bytes. Raises BadBlobStore.
    """
    async with open_bucket(location) as bucket:
        await check(bucket)
        yield S3BlobStore(bucket, locks, largest=largest)


@asynccontextmanager
async def open_bucket(location: Location) -> AsyncIterator[Bucket]:
    """A client that is closed at the end. Its library is slow to import: only users of S3 wait."""
    from aiobotocore.session import get_session  # type: ignore[import-untyped]

    session = get_session()
    region = location.region or session.get_config_variable("region") or REGION
    async with session.create_client(
        "s3", region_name=region, endpoint_url=location.endpoint, config=_config(location)
    ) as client:
        yield Bucket(client, location)


async def check(bucket: Bucket) -> None:
    """Writes, lists and deletes. Raises BadBlobStore with what is missing, and what to do."""
    probe = f"~probe-{uuid4().hex}"
    try:
        await bucket.require()
        await bucket.put(probe, b"may be deleted")
        await bucket.delete(probe)
        async for _ in bucket.pending(probe):
            break
    except Refusal as refusal:
        raise BadBlobStore(*_told(bucket.location, refusal)) from refusal
    except Unavailable as error:
        raise BadBlobStore(
            f"the bucket {bucket.location} cannot be used: {error}",
            "check endpoint and credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
        ) from error


def _told(location: Location, refusal: Refusal) -> tuple[str, str]:
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
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        # Many stores other than Amazon's do not know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": location.style},
    )
