"""The pack that a process adds to, and what is done to its file: begun, added to, given up."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from infrastructure.blobs.local.disk import NEW_FILE, sync_folder, try_lock, write_all
from infrastructure.blobs.local.packs.members import BLOCK, blocks, header, padding
from infrastructure.blobs.local.packs.naming import Packed, Place

FULL = 64 * 1024 * 1024  # bytes: a pack that has so many is added to no more

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Pack:
    """An open pack. Its lock says that somebody may still add to it; close gives that back."""

    def __init__(self, path: Path, name: str) -> None:
        """Creates it, durably. Raises OSError."""
        self._path = path
        self._name = name
        self._blocks = 0  # that are durable
        self.descriptor = os.open(path, _NEW, NEW_FILE)
        try_lock(self.descriptor)  # nobody else knows of it
        try:
            sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def full(self) -> bool:
        return self._blocks * BLOCK >= FULL

    def framed(self, blobs: Iterable[tuple[str, bytes]]) -> tuple[list[Packed], bytes]:
        """Where these will be, if they are written next, and what is to be written."""
        block = self._blocks
        places: list[Packed] = []
        frames: list[bytes] = []
        for chosen, content in blobs:
            size = len(content)
            places.append(Packed(chosen, Place(self._name, block, size)))
            frames += header(chosen, size), content, padding(size)
            block += blocks(size)
        return places, b"".join(frames)

    def write(self, frames: bytes) -> None:
        for _ in write_all(self.descriptor, frames):
            pass

    def wrote(self, frames: bytes) -> None:
        """They are durable: the next ones come behind them."""
        self._blocks += len(frames) // BLOCK

    def close(self) -> None:
        """What was written and is not durable was promised to nobody: its room is given back."""
        with suppress(OSError):
            os.ftruncate(self.descriptor, self._blocks * BLOCK)
        if not self._blocks:
            self._path.unlink(missing_ok=True)
        os.close(self.descriptor)
