"""What a bucket holds of a blob: nothing, all of it, or a part that still grows.

A blob that grows is a multipart upload and a tail object, `<name>~tail`. The tail's body holds
the bytes behind the last part; its metadata say which parts come before. Writing that one object
is what makes bytes durable: parts that it does not name do not count.
"""

from __future__ import annotations

import asyncio

import msgspec

from infrastructure.blobs.s3.bucket import Bucket, Stored
from infrastructure.blobs.s3.parts import Part, Parts

METADATA = "uptrail"

_TAIL = "~tail"


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """The metadata of a tail.

    `over` is the ETag of a finished object of the same name that this blob replaces: any other
    object found under the name was finished later, and counts instead. `commit` is of this one
    write, by which a writer knows its own.
    """

    parts: Parts
    commit: str
    over: str | None = None


class Whole(msgspec.Struct, frozen=True):
    """A finished blob: one object."""

    size: int
    etag: str


class Growing(msgspec.Struct, frozen=True):
    """A blob that is not finished: `tail` bytes behind the parts that `state` names."""

    state: State
    etag: str
    tail: int

    @property
    def size(self) -> int:
        return self.state.parts.size + self.tail


class Found(msgspec.Struct, frozen=True):
    """A blob as it was found.

    `tail` is the ETag of the tail object, whether it counts or not; `listed` are the parts that
    are stored, those included that do not count, where they were asked for.
    """

    blob: Whole | Growing | None
    tail: str | None
    listed: tuple[Part, ...] = ()

    @property
    def size(self) -> int:
        return self.blob.size if self.blob else 0


def tail_of(name: str) -> str:
    """`~` is in no blob's name, so that nobody takes a tail for a blob."""
    return f"{name}{_TAIL}"


def blob_of_tail(name: str) -> str:
    """The blob that a stored object belongs to, which may be a tail or the blob itself."""
    return name.removesuffix(_TAIL)


async def look(bucket: Bucket, name: str) -> Found:
    """What there is of a blob, without its bytes."""
    whole, tail = await asyncio.gather(bucket.head(name), bucket.head(tail_of(name)))
    growing = _growing(tail) if tail else None
    etag = tail.etag if tail else None
    if whole and (growing is None or growing.state.over != whole.etag):
        return Found(Whole(whole.size, whole.etag), etag)
    return Found(growing, etag)


async def look_closely(bucket: Bucket, name: str) -> Found:
    """What there is, the parts being listed. A blob whose parts are not all there is not there."""
    found = await look(bucket, name)
    if not isinstance(found.blob, Growing) or found.blob.state.parts.upload is None:
        return found
    parts = found.blob.state.parts
    listed = await bucket.parts(name, str(parts.upload))
    if listed is None or parts.steps(listed) is None:
        return Found(None, found.tail)
    return Found(found.blob, found.tail, tuple(listed))


def encode(state: State) -> dict[str, str]:
    return {METADATA: msgspec.json.encode(state).decode()}


def _growing(tail: Stored) -> Growing | None:
    """None for an object that is not ours: it is no blob, and the next write replaces it."""
    try:
        state = msgspec.json.decode(tail.metadata.get(METADATA, ""), type=State)
    except msgspec.DecodeError:
        return None
    return Growing(state, tail.etag, tail.size)
