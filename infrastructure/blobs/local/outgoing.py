"""What a fast sender leaves in memory is written out while more arrives: no sync waits for much.

Without this a sync, and whoever wants to take the upload over, would wait until the disk has
all that came since the last checkpoint, which may be hundreds of megabytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future

WINDOW = 4 * 1024 * 1024  # bytes that are written out together
AT_ONCE = 2  # windows of one blob; the next one waits for the first of them


class Outgoing:
    """The windows of one open blob, from `offset` on."""

    def __init__(
        self, offset: int, write_out: Callable[[int, int], None], threads: Executor
    ) -> None:
        """`write_out` is called in a thread, with the first byte of a window and the one behind."""
        self._end = offset
        self._write_out = write_out
        self._threads = threads
        self._windows: deque[Future[None]] = deque()

    def due(self, size: int) -> bool:
        """Whether a blob of this size holds a window that nobody writes out yet."""
        return size - self._end >= WINDOW

    async def begin(self, size: int) -> Future[None]:
        """Has everything up to `size` written out; raises what an earlier window met."""
        start, self._end = self._end, size
        if len(self._windows) == AT_ONCE:
            await _over(self._windows.popleft())
        window = self._threads.submit(self._write_out, start, size)
        self._windows.append(window)
        return window

    async def settled(self) -> None:
        """Waits for all of them, and raises what one of them met."""
        while self._windows:
            await _over(self._windows.popleft())

    def give_up(self) -> None:
        """Those that no thread has begun with are not wanted any more."""
        for window in self._windows:
            window.cancel()


async def _over(window: Future[None]) -> None:
    await asyncio.shield(asyncio.wrap_future(window))
