"""The bytes of a blob, streamed; a connection that breaks is taken up where it broke."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from application.errors import Unavailable
from application.ports.blobs import BlobMissing
from infrastructure.blobs.s3.bucket import Bucket
from infrastructure.blobs.s3.failures import refusals, told
from infrastructure.blobs.s3.state import Growing, Whole, look, tail_of

READ_CHUNK = 256 * 1024
TRIES = 4  # connections in a row that may break without a byte


class Source(msgspec.Struct, frozen=True):
    """An object to read from, and the bytes it has."""

    name: str
    size: int
    etag: str


async def chunks_of(bucket: Bucket, name: str, start: int, end: int | None) -> AsyncIterator[bytes]:
    """The bytes from `start` up to `end`, exclusive. Raises BlobMissing, Unavailable."""
    with told():
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
            if failed == TRIES:
                raise


async def _source(bucket: Bucket, name: str) -> Source:
    match (await look(bucket, name)).blob:
        case Whole(size, etag):
            return Source(name, size, etag)
        case Growing(state, etag, tail) if not state.parts.size:
            return Source(tail_of(name), tail, etag)
        case Growing():
            raise BlobMissing(f"the blob {name} is not finished")
        case _:
            raise BlobMissing(f"no blob {name} is stored")


async def _stream(bucket: Bucket, source: Source, start: int, end: int) -> AsyncIterator[bytes]:
    """One connection's bytes; the object may not change between two."""
    with told(), refusals():
        body, _ = await bucket.get(source.name, start, end, source.etag)
        async with body:
            while chunk := await body.read(READ_CHUNK):
                yield chunk
