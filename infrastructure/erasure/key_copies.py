"""Backup copies of owners' keys, encrypted with and stored next to a master key.

A master key is destroyed when an owner is erased, so that backups of the database from before
cannot be read by themselves. The copy made at that moment has the same keys, but the erased
owner's, under the new master key.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import msgspec

from infrastructure.secret_files import write_secret

SUFFIX = ".owners"


class OwnerKeyCopy(msgspec.Struct, frozen=True):
    """Keys of owners by id, the master key that encrypts them, and those that it replaced."""

    master: str
    proof: bytes
    replaced: list[str]
    keys: list[tuple[UUID, bytes]]


class OwnerKeyCopies:
    """Storage of the newest copy, in the folder of the master keys."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, copy: OwnerKeyCopy) -> None:
        """Keep this copy, durably, and remove earlier ones. Raises OSError."""
        file = self._folder / f"{sanitized(copy.master)}{SUFFIX}"
        write_secret(file, msgspec.json.encode(copy), replace=True)
        for earlier in self._folder.glob(f"*{SUFFIX}"):
            if earlier != file:
                earlier.unlink(missing_ok=True)

    def replacing(self, master: str) -> OwnerKeyCopy | None:
        """Return the copy whose master key directly or indirectly replaced this one."""
        for file in self._folder.glob(f"*{SUFFIX}"):
            try:
                copy = msgspec.json.decode(file.read_bytes(), type=OwnerKeyCopy)
            except (OSError, msgspec.MsgspecError):
                continue
            if master in copy.replaced:
                return copy
        return None


def sanitized(id: str) -> str:
    """Return a key id of a KMS as part of a file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in id)[-100:]
