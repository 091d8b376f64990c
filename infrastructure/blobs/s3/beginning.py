"""Where an append begins: what is kept of the bytes before its offset, and how.

S3 can neither shorten an object nor read the parts of an upload that is not completed. So bytes
before an offset inside a part are got at by completing the upload and copying from the object,
within the store. That is rare: after a crash between storing and recording, or where bytes that
proved bad are thrown away.
"""

from __future__ import annotations

import msgspec

from infrastructure.blobs.s3.bucket import Bucket
from infrastructure.blobs.s3.failures import Refusal
from infrastructure.blobs.s3.parts import LARGEST, NO_PARTS, SMALLEST, Parts, evenly
from infrastructure.blobs.s3.state import Found, Growing, Whole, look, tail_of

COPIED_AT_ONCE = LARGEST // 5  # bytes of one copy inside the store, which takes a while


class Beginning(msgspec.Struct, frozen=True):
    """Parts and tail bytes up to the offset.

    `over` is the finished object that is being replaced; `drop` an upload to abort as soon as
    what replaces it is durable.
    """

    parts: Parts
    tail: bytes
    over: str | None = None
    drop: str | None = None


async def begin(bucket: Bucket, name: str, found: Found, offset: int) -> Beginning:
    """Reads or copies what is before the offset, of which enough is known to be stored."""
    blob = found.blob
    if isinstance(blob, Growing):
        return await _resumed(bucket, name, found, blob, offset)
    if blob is None or offset == 0:
        return Beginning(NO_PARTS, b"", blob.etag if blob else None)
    return await _reopened(bucket, name, blob, offset)


async def read_whole(bucket: Bucket, name: str, start: int, end: int, etag: str) -> bytes:
    """A few bytes of an object; Refusal where it is another one by now."""
    if start >= end:
        return b""
    body, _ = await bucket.get(name, start, end, etag)
    async with body:
        return bytes(await body.read())


async def _resumed(
    bucket: Bucket, name: str, found: Found, blob: Growing, offset: int
) -> Beginning:
    parts, over = blob.state.parts, blob.state.over
    if offset == 0:
        return Beginning(NO_PARTS, b"", over, parts.upload)
    used = max((part.number for part in found.listed), default=0)
    if offset >= parts.size:
        tail = await read_whole(bucket, tail_of(name), 0, offset - parts.size, blob.etag)
        return Beginning(parts.past(used), tail, over)
    for fewer in parts.steps(found.listed) or []:
        if fewer.size == offset:
            return Beginning(fewer.past(used), b"", over)
    return await _reopened(bucket, name, await _completed(bucket, name, found, parts), offset)


async def _completed(bucket: Bucket, name: str, found: Found, parts: Parts) -> Whole:
    """The parts as one object; the tail goes, which is beyond the offset."""
    await bucket.complete(name, str(parts.upload), parts.among(found.listed))
    blob = (await look(bucket, name)).blob
    if not isinstance(blob, Whole):
        raise Refusal("NoSuchKey", 404, f"the parts of {name} are gone")
    return blob


async def _reopened(bucket: Bucket, name: str, blob: Whole, offset: int) -> Beginning:
    if offset < SMALLEST:
        return Beginning(NO_PARTS, await read_whole(bucket, name, 0, offset, blob.etag), blob.etag)
    parts = Parts(await bucket.create(name))
    assert parts.upload is not None
    try:
        for number, (start, end) in enumerate(evenly(offset, COPIED_AT_ONCE), 1):
            parts = parts.plus(
                await bucket.copy(name, str(parts.upload), number, start, end, blob.etag)
            )
    except BaseException:
        await bucket.abort(name, str(parts.upload))
        raise
    return Beginning(parts, b"", blob.etag)
