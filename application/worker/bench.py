"""The workbench: what one step of an attempt sees of the world."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import msgspec

from application.errors import StorageFull
from application.pipeline import Permanent
from application.ports.blobs import BlobStore
from application.worker.source import Source
from domain.upload.aggregate import Upload

MAX_ARTIFACT = 16 * 1024 * 1024  # bytes

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")


class Reported(msgspec.Struct, frozen=True):
    """How far a step says it is, in its own units."""

    done: int = 0
    total: int | None = None


class Bench:
    """The port `Workbench` for one step. `reported` is its last word on how far it is."""

    def __init__(
        self, source: Source, blobs: BlobStore, upload: Upload, artifacts: dict[str, str]
    ) -> None:
        self.reported = Reported()
        self._source = source
        self._blobs = blobs
        self._upload = upload
        self._artifacts = artifacts

    def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return self._source.read(start, end)

    async def progress(self, done: int, total: int | None = None) -> None:
        """Notes it; the attempts' keeper records it when it is time. Raises ValueError."""
        if done < 0 or (total is not None and done > total):
            raise ValueError(f"{done} of {total} is not progress")
        self.reported = Reported(done, total)

    async def attach(self, name: str, content: bytes) -> None:
        """Raises Permanent for a name that cannot be stored, or that is taken; StorageFull."""
        if not _NAME.fullmatch(name) or ".." in name:
            raise Permanent(f"{name!r} is no name for an artifact: use a-z 0-9 - and .")
        if name in self._artifacts:
            raise Permanent(f"an artifact {name!r} is attached already")
        if len(content) > MAX_ARTIFACT:
            raise Permanent(f"artifact {name!r} is larger than {MAX_ARTIFACT} bytes")
        blob = f"artifacts/{self._upload.id}/{self._upload.attempt}/{name}"
        self._artifacts[name] = blob  # before the bytes, so that no failure leaves an orphan
        try:
            await self._blobs.put(blob, content)
        except StorageFull:  # certain that nothing is stored: a step may go on without it
            del self._artifacts[name]
            raise
