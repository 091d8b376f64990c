"""State of a blob in a bucket: absent, complete, or growing.

A growing blob is a multipart upload and a tail object, `<name>~tail`. The tail's body contains the
bytes after the last part; its metadata list the parts before. Writing the tail makes bytes
durable: parts that it does not list do not count.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import IO

import msgspec

from application.errors import Unavailable
from infrastructure.blobs.s3.client import Bucket, ObjectInfo, Parts, S3Part

# The memory that all writers of a process share: a bounded amount, however many there are.
#
# Bytes wait in memory while there is room for everybody's; a writer that is over its share keeps
# them in an unlinked file, which the page cache holds as long as it can.

MAX_BUFFERED_BYTES = (
    64 * 1024 * 1024
)  # bytes in memory that wait to be sent, of all writers together
MIN_BUFFER_BYTES = 64 * 1024  # bytes that any writer may keep in memory: a file costs more
MAX_CONCURRENT_BODIES = 8  # requests with a body, up to a part each, that are on their way at once


class BufferPool:
    """Memory limit of uploads: concurrent bodies by `upload_slots`; buffers share the rest."""

    def __init__(
        self, waiting: int = MAX_BUFFERED_BYTES, upload_slots: int = MAX_CONCURRENT_BODIES
    ) -> None:
        self.upload_slots = asyncio.Semaphore(upload_slots)
        self._waiting = waiting
        self._buffers = 0

    @property
    def share(self) -> int:
        """Return the number of bytes that one buffer may hold in memory now."""
        return max(MIN_BUFFER_BYTES, self._waiting // max(1, self._buffers))

    def buffer(self) -> Buffer:
        self._buffers += 1
        return Buffer(self)

    def closed(self) -> None:
        self._buffers -= 1


class Buffer:
    """Buffer of bytes in the order of their arrival. Raises Unavailable."""

    def __init__(self, memory: BufferPool) -> None:
        self._memory = memory
        self._bytes = bytearray()
        self._file: IO[bytes] | None = None
        self._in_file = 0

    def __len__(self) -> int:
        return self._in_file + len(self._bytes)

    def add(self, content: memoryview | bytes) -> None:
        self._bytes += content
        if len(self._bytes) > self._memory.share:
            self._spill()

    def content(self) -> bytes:
        if self._file is None:
            return bytes(self._bytes)
        return os.pread(self._file.fileno(), self._in_file, 0) + bytes(self._bytes)

    def take(self) -> bytes:
        """Return all bytes and clear the buffer."""
        content = self.content()
        self.clear()
        return content

    def clear(self) -> None:
        self._bytes = bytearray()
        self._in_file = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self.clear()
        self._memory.closed()

    def _spill(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            view = memoryview(self._bytes)
            while view:
                written = os.pwrite(self._file.fileno(), view, self._in_file)
                self._in_file += written
                view = view[written:]
            view.release()
        except OSError as error:
            raise Unavailable(f"no room for bytes on their way to S3: {error.strerror}") from error
        self._bytes = bytearray()


METADATA = "uptrail"

_TAIL = "~tail"


class TailMetadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """Metadata of a tail object.

    `over` is the ETag of a finished object of the same name that this blob replaces: any other
    object found under the name was finished later, and counts instead. `commit` is a random id of
    this write, by which a writer recognises its own.
    """

    parts: Parts
    commit: str
    over: str | None = None


class CompleteBlob(msgspec.Struct, frozen=True):
    """A finished blob: one object."""

    size: int
    etag: str


class IncompleteBlob(msgspec.Struct, frozen=True):
    """Unfinished blob: `tail` bytes follow the parts in `state`."""

    state: TailMetadata
    etag: str
    tail: int

    @property
    def size(self) -> int:
        return self.state.parts.size + self.tail


class BlobStat(msgspec.Struct, frozen=True):
    """State of a blob in the bucket.

    `tail` is the ETag of the tail object, whether it counts or not; `listed` are the stored parts,
    if they were requested, also those that do not count.
    """

    blob: CompleteBlob | IncompleteBlob | None
    tail: str | None
    listed: tuple[S3Part, ...] = ()

    @property
    def size(self) -> int:
        return self.blob.size if self.blob else 0


def tail_key(name: str) -> str:
    """Return the key of the tail. `~` occurs in no name of a blob."""
    return f"{name}{_TAIL}"


def blob_name_of_tail(name: str) -> str:
    """Return the name of the blob that a stored object belongs to, as tail or as object."""
    return name.removesuffix(_TAIL)


async def stat(bucket: Bucket, name: str) -> BlobStat:
    """Return the state of a blob, without its bytes."""
    whole, tail = await asyncio.gather(bucket.head(name), bucket.head(tail_key(name)))
    growing = _growing(tail) if tail else None
    etag = tail.etag if tail else None
    if whole and (growing is None or growing.state.over != whole.etag):
        return BlobStat(CompleteBlob(whole.size, whole.etag), etag)
    return BlobStat(growing, etag)


async def stat_with_parts(bucket: Bucket, name: str) -> BlobStat:
    """Return the state with listed parts. A blob with missing parts is absent."""
    found = await stat(bucket, name)
    if not isinstance(found.blob, IncompleteBlob) or found.blob.state.parts.upload is None:
        return found
    parts = found.blob.state.parts
    listed = await bucket.parts(name, str(parts.upload))
    if listed is None or parts.prefixes(listed) is None:
        return BlobStat(None, found.tail)
    return BlobStat(found.blob, found.tail, tuple(listed))


def encode(state: TailMetadata) -> dict[str, str]:
    return {METADATA: msgspec.json.encode(state).decode()}


def _growing(tail: ObjectInfo) -> IncompleteBlob | None:
    """Return the state in a tail; None for a foreign object, which the next write replaces."""
    try:
        state = msgspec.json.decode(tail.metadata.get(METADATA, ""), type=TailMetadata)
    except msgspec.DecodeError:
        return None
    return IncompleteBlob(state, tail.etag, tail.size)
