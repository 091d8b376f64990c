"""The blob store: the bytes of uploads and of artifacts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol


class BlobWriter(Protocol):
    """One open append to a blob. Not shared between tasks."""

    @property
    def size(self) -> int:
        """Size of the blob so far in bytes, including what was stored before this append."""

    @property
    def has_excess(self) -> bool:
        """True while bytes are stored beyond the append's offset; its first write drops them."""

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append bytes; they are durable after the next `sync`. Raises StorageFull."""

    async def sync(self) -> int:
        """Make every byte written durable; return the size of the blob."""

    async def checkpoint(self) -> int:
        """Make durable what is cheap to make durable; return the number of durable bytes."""

    async def close(self) -> None:
        """End the append. Bytes not synced may or may not be kept."""


class BlobStore(Protocol):
    """Named bytes that grow by appending until they are finished.

    The caller chooses names from the characters `a-z 0-9 - . /`. `put_many` may extend a name by
    an `@` and a suffix that only the store interprets.
    """

    async def append(self, name: str, offset: int) -> BlobWriter:
        """Open the blob for bytes from `offset` on, and drop any stored beyond it.

        Creates the blob at offset 0. Raises BlobTooShort if fewer than `offset` bytes are stored,
        BlobBusy if another append to it is open, on any machine, as far as the store can detect.
        """

    async def size(self, name: str) -> int:
        """Return the number of stored bytes; 0 for a blob that does not exist."""

    async def finish(self, name: str, size: int) -> None:
        """Complete the blob and make it durable under its name. Raises BlobTooShort.

        Bytes written by an append that is still open in this process are part of it.
        """

    def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` up to `end` (exclusive) in chunks. Raises BlobMissing."""

    async def put(self, name: str, content: bytes) -> None:
        """Store a small blob durably, replacing any of that name."""

    async def put_many(self, blobs: Mapping[str, bytes]) -> Mapping[str, str]:
        """Store small blobs of new names durably; return the stored name of each.

        The stored name is valid for `size`, `read` and `delete`. After an error none may be used.
        """

    async def delete(self, name: str) -> None:
        """Delete the blob, if it exists."""

    async def free_bytes(self) -> int | None:
        """Return the free space in bytes, or None if unknown."""


class BlobInventory(Protocol):
    """Listing of all stored blobs, partition by partition, to find orphans."""

    @property
    def parts(self) -> int:
        """Number of partitions, each small enough to be listed at once."""

    async def stale(self, part: int, age: float) -> Sequence[str]:
        """Return the blobs of a partition (from 0) that were last written `age` seconds ago.

        Also deletes temporary files of the store that are as old. Raises Unavailable.
        """


class BlobTooShort(Exception):
    """Fewer bytes are stored than were acknowledged: data was lost."""

    def __init__(self, name: str, stored: int, expected: int) -> None:
        super().__init__(f"{name} holds {stored} bytes, not {expected}")
        self.stored = stored
        self.expected = expected


class BlobBusy(Exception):
    """Another append to this blob is open."""


class BlobMissing(Exception):
    """No blob of that name is stored."""
