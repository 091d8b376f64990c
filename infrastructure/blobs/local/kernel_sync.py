"""Data syncs by kernel AIO (io_submit(2)): no thread waits for the disk.

A thread that calls fdatasync has to get the interpreter's lock before and after it, from an event
loop that is busy. That costs a small file more than all its bytes do.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

MAX_PENDING_SYNCS = 8  # a writer has one at a time; more are pending only if callers were cancelled

_ERRNO_SIGN = 1 << 63  # caio passes results as unsigned numbers: from here on they are -errno


class KernelSync:
    """Syncs of open files as requests to the kernel, whose completions wake the event loop.

    It serves one event loop at a time.
    """

    def __init__(self) -> None:
        """Raises OSError if the kernel has no AIO, or none to spare (fs.aio-max-nr)."""
        try:
            from caio.linux_aio import Context, Operation
        except ImportError as error:
            raise OSError(f"no kernel AIO: {error}") from error
        try:
            self._context = Context(MAX_PENDING_SYNCS)
        except (SystemError, OverflowError, ValueError, RuntimeError) as error:
            raise OSError(f"the kernel refuses AIO: {error}") from error
        self._new_request = Operation.fdsync
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending = 0

    def submit(self, descriptor: int) -> asyncio.Future[None] | None:
        """Return a future that is done when the bytes of the file are durable, or raises OSError.

        The file may be closed meanwhile. Return None if the kernel does not accept the request,
        now or for this file: sync in another way.
        """
        if self._pending == MAX_PENDING_SYNCS:
            return None
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            loop.add_reader(self._context.fileno, self._process_completions)
        synced: asyncio.Future[None] = loop.create_future()

        def complete(result: int) -> None:
            self._pending -= 1
            if synced.done() or loop.is_closed():  # the caller was cancelled
                return
            if result < _ERRNO_SIGN:
                synced.set_result(None)
            else:
                number = 2 * _ERRNO_SIGN - result
                synced.set_exception(OSError(number, os.strerror(number)))

        request = self._new_request(descriptor)
        request.set_callback(complete)
        try:
            accepted = self._context.submit(request)
        except (SystemError, OverflowError, ValueError):
            return None
        if not accepted:
            return None
        self._pending += 1
        return synced

    def close(self) -> None:
        """Wait for pending syncs and release the kernel's resources."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._context.fileno)
        while self._pending:
            with suppress(SystemError):  # a signal interrupted the wait
                self._context.process_events(MAX_PENDING_SYNCS, 1, 1)
        del self._context  # now, not with the garbage: all processes share fs.aio-max-nr

    def _process_completions(self) -> None:
        with suppress(BlockingIOError):
            self._context.poll()
        self._context.process_events(MAX_PENDING_SYNCS)


def open_kernel_sync() -> KernelSync | None:
    """Return None if the kernel offers no AIO."""
    try:
        return KernelSync()
    except OSError:
        return None
