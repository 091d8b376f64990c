"""The memory that all writers of a process share: a bounded amount, however many there are.

Bytes wait in memory while there is room for everybody's; a writer that is over its share keeps
them in an unlinked file, which the page cache holds as long as it can.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import IO

from application.errors import Unavailable

WAITING = 64 * 1024 * 1024  # bytes in memory that wait to be sent, of all writers together
LEAST = 64 * 1024  # bytes that any writer may keep in memory: a file costs more
WAYS = 8  # requests with a body, up to a part each, that are on their way at once


class Memory:
    """`ways` are taken by whoever sends a body; buffers share the rest."""

    def __init__(self, waiting: int = WAITING, ways: int = WAYS) -> None:
        self.ways = asyncio.Semaphore(ways)
        self._waiting = waiting
        self._buffers = 0

    @property
    def share(self) -> int:
        """Bytes that one buffer may hold in memory now."""
        return max(LEAST, self._waiting // max(1, self._buffers))

    def buffer(self) -> Buffer:
        self._buffers += 1
        return Buffer(self)

    def closed(self) -> None:
        self._buffers -= 1


class Buffer:
    """Bytes in the order of their arrival, taken out all at once. Raises Unavailable."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._bytes = bytearray()
        self._file: IO[bytes] | None = None
        self._in_file = 0

    def __len__(self) -> int:
        return self._in_file + len(self._bytes)

    def add(self, content: memoryview | bytes) -> None:
        self._bytes += content
        if len(self._bytes) > self._memory.share:
            self._set_aside()

    def content(self) -> bytes:
        if self._file is None:
            return bytes(self._bytes)
        return os.pread(self._file.fileno(), self._in_file, 0) + bytes(self._bytes)

    def take(self) -> bytes:
        """Everything; the buffer is empty afterwards."""
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

    def _set_aside(self) -> None:
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
