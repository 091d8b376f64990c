"""Syncs that the kernel does beside us: many at once, with no thread of ours that waits for them.

A trip to a thread costs a small file more than all its bytes do: the thread has to get hold of the
interpreter's lock between every two system calls. Linux takes the same syncs as requests, and
tells when they are done (io_submit(2)).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress

from caio import linux_aio

ROOM = 256  # syncs that may be under way

_SIGN = 1 << 63  # results come as unsigned numbers: from here on they are an errno below 0


class _Waiting:
    """Who waits for how many more syncs, and the first error of one."""

    def __init__(self, outcome: asyncio.Future[None], left: int) -> None:
        self.outcome = outcome
        self.left = left
        self.error = 0

    def settle(self) -> None:
        """A failed sync is told when the others are done, too."""
        if self.left or self.outcome.done() or self.outcome.get_loop().is_closed():
            return  # or its caller has gone away
        if self.error:
            self.outcome.set_exception(OSError(self.error, os.strerror(self.error)))
        else:
            self.outcome.set_result(None)


class KernelSyncs:
    """For one event loop at a time. Raises OSError where the kernel does not offer this."""

    def __init__(self) -> None:
        if linux_aio is None:
            raise OSError("only Linux takes such requests")
        try:
            self._requests = linux_aio.Context(ROOM)
        except (SystemError, OverflowError, ValueError, RuntimeError) as error:
            raise OSError(f"the kernel takes no such requests: {error}") from error
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way = 0

    def begin(self, files: Sequence[int]) -> asyncio.Future[None] | None:
        """Done once the bytes of all these open files are durable; they may be closed now.

        Raises OSError if that failed for one.
        None where the kernel does not take them all, now or ever: sync them another way.
        """
        if self._under_way + len(files) > ROOM:
            return None
        loop = asyncio.get_running_loop()
        self._listen_on(loop)
        waiting = _Waiting(loop.create_future(), len(files))
        taken = self._submit(files, waiting)
        self._under_way += taken
        return waiting.outcome if taken == len(files) else None

    def close(self) -> None:
        """Waits for what is under way, tells nobody, and gives its room back to the kernel."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._requests.fileno)
        while self._under_way:
            self._requests.process_events(ROOM, 1, 1)
        del self._requests

    def _submit(self, files: Sequence[int], waiting: _Waiting) -> int:
        """How many of them the kernel took, the first ones."""

        def done(result: int) -> None:
            self._under_way -= 1
            waiting.left -= 1
            if result >= _SIGN:
                waiting.error = waiting.error or 2 * _SIGN - result
            waiting.settle()

        operations = []
        for descriptor in files:
            operation = linux_aio.Operation.fdsync(descriptor)
            operation.set_callback(done)
            operations.append(operation)
        try:
            return int(self._requests.submit(*operations))
        except (OverflowError, ValueError, SystemError):
            return 0

    def _listen_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            self._loop = loop
            loop.add_reader(self._requests.fileno, self._rung)

    def _rung(self) -> None:
        with suppress(BlockingIOError):
            self._requests.poll()
        self._requests.process_events(ROOM)


def open_kernel_syncs() -> KernelSyncs | None:
    """None where the kernel is another, or does not let us."""
    try:
        return KernelSyncs()
    except OSError:
        return None
