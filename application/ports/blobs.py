"""The blob store: the bytes of uploads and of what processing made of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol


class BlobWriter(Protocol):
    """One open append to a blob. Not shared between tasks."""

    @property
    def size(self) -> int:
        """Bytes written so far, those before this append included."""

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Adds bytes; they are durable after the next `sync`. Raises StorageFull."""

    async def sync(self) -> int:
        """Makes every byte written durable, and returns how many there are."""

    async def checkpoint(self) -> int:
        """How many bytes are durable, once those are that can be made so at little cost."""

    async def close(self) -> None:
        """Ends the append. Bytes not synced may or may not be kept."""


class BlobStore(Protocol):
    """Named bytes that grow by appending until they are finished.

    A name is chosen by the caller from `a-z 0-9 - . /`. A store may go on from there where it
    names blobs itself (`put_many`): behind an `@`, and for nobody else to read.
    """

    async def append(self, name: str, offset: int) -> BlobWriter:
        """Opens the blob for bytes from `offset` on, and drops any stored beyond it.

        Creates the blob at offset 0. Raises BlobTooShort if fewer than `offset` bytes are stored,
        BlobBusy where another append to it is open, on any machine, and the store can tell.
        """

    async def size(self, name: str) -> int:
        """How many bytes are stored; 0 for a blob that does not exist."""

    async def finish(self, name: str, size: int) -> None:
        """The blob is complete, and durable under its name. Raises BlobTooShort.

        What an append that is still open in this process has written is part of it.
        """

    def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end` (exclusive) in chunks. Raises BlobMissing."""

    async def put(self, name: str, content: bytes) -> None:
        """Stores a whole small blob, durably, in place of any of that name."""

    async def put_many(self, blobs: Mapping[str, bytes]) -> Mapping[str, str]:
        """Stores small blobs of new names, durably, and says by which name each is found.

        That name is for `size`, `read` and `delete`. After an error none of them is to be used.
        """

    async def delete(self, name: str) -> None:
        """Frees the bytes; a name that does not exist is fine."""

    async def free_bytes(self) -> int | None:
        """Room that is left, or None where there is no telling."""


class BlobInventory(Protocol):
    """What a store holds, whether or not anybody knows of it; looked through part by part."""

    @property
    def parts(self) -> int:
        """How many parts there are: small enough, each, to be listed at once."""

    async def stale(self, part: int, age: float) -> Sequence[str]:
        """Names of the blobs in this part, from 0 on, that were last written `age` seconds ago.

        What the store itself left behind, and is as old, it frees on the way.
        Raises Unavailable.
        """


class BlobTooShort(Exception):
    """Fewer bytes are stored than the caller knows of: a loss to report."""

    def __init__(self, name: str, stored: int, expected: int) -> None:
        super().__init__(f"{name} holds {stored} bytes, not {expected}")
        self.stored = stored
        self.expected = expected


class BlobBusy(Exception):
    """Another append to this blob is open."""


class BlobMissing(Exception):
    """No blob of that name is stored."""
