"""The bytes of an upload as its steps read them: a small file comes from the store only once."""

from __future__ import annotations

from collections.abc import AsyncIterator

from application.ports.blobs import BlobStore
from domain.upload.aggregate import Upload

SMALL = 256 * 1024  # bytes of a file that is kept in memory while its attempt lasts


class Source:
    """One upload's bytes, for one attempt."""

    def __init__(self, blobs: BlobStore, upload: Upload) -> None:
        assert upload.blob is not None
        self._blobs = blobs
        self._blob = upload.blob
        self._size = upload.received
        self._kept: bytes | None = None

    async def read(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end`, exclusive, in chunks. Raises BlobMissing."""
        if self._size > SMALL:
            async for chunk in self._blobs.read(self._blob, start, end):
                yield chunk
            return
        if self._kept is None:
            # One byte more than there should be: a blob that is too long must not pass as sound.
            chunks = [chunk async for chunk in self._blobs.read(self._blob, 0, self._size + 1)]
            self._kept = b"".join(chunks)
        if wanted := self._kept[start:end]:
            yield wanted
