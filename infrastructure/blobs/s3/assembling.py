"""How parts are sent, and become one object."""

from __future__ import annotations

from application.errors import StorageFull
from application.ports.blobs import BlobTooShort
from infrastructure.blobs.s3.bucket import Bucket
from infrastructure.blobs.s3.failures import Refusal
from infrastructure.blobs.s3.parts import MOST, Parts


async def send(bucket: Bucket, name: str, parts: Parts, content: bytes) -> Parts:
    """Stores one more part. Raises StorageFull when there are as many as there may be."""
    if parts.last >= MOST:
        raise StorageFull(f"a blob has at most {MOST:,} parts")
    assert parts.upload is not None
    return parts.plus(await bucket.upload(name, parts.upload, parts.last + 1, content))


async def assemble(bucket: Bucket, name: str, parts: Parts, rest: bytes, over: str | None) -> None:
    """Makes parts and rest one object; a blob that never filled a part is simply put.

    Raises BlobTooShort where the parts are not those that were sent.
    """
    if parts.upload is None:
        await bucket.put(name, rest)
        return
    if rest:
        parts = await send(bucket, name, parts, rest)
    listed = await bucket.parts(name, str(parts.upload))
    if listed is not None and parts.steps(listed) is None:
        raise BlobTooShort(name, 0, parts.size)
    try:
        await bucket.complete(name, str(parts.upload), parts.among(listed or []))
    except Refusal as refusal:
        if not refusal.absent:
            raise
        # Completed by a first try whose answer was lost, or gone for good?
        found = await bucket.head(name)
        if found is None or found.size != parts.size or found.etag == over:
            raise BlobTooShort(name, 0, parts.size) from refusal
