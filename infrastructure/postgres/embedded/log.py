"""The server's log: one file, kept short."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

LIMIT: Final = 8 * 1024 * 1024
_TAIL_BYTES: Final = 16 * 1024
_TAIL_LINES: Final = 20


class Log:
    """What the server's processes write, bounded at two files of 8 MiB."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> int:
        """A descriptor to append to; the server writes through it, needing no permission."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)

    def tail(self) -> str:
        """The last lines."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return "\n".join(lines[-_TAIL_LINES:])
        return ""

    def trim(self, limit: int = LIMIT) -> None:
        """Once it is too long, keep it as the previous log and go on in an empty one."""
        # Emptied, not renamed: the server goes on appending through the same descriptor.
        if self._path.stat().st_size > limit:
            previous = self._path.with_name(f"{self._path.name}.1")
            shutil.copy(self._path, previous)
            os.truncate(self._path, 0)
