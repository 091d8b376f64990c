"""Syncs that the kernel does beside us: many at once, with no thread of ours that waits for them.

A trip to a thread costs a small file more than all its bytes do: the thread has to get hold of the
interpreter's lock between every two system calls. Linux takes the same syncs as requests, and
rings a bell when they are done.

Source: io_submit(2), eventfd(2) and include/uapi/linux/aio_abi.h of Linux.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

ROOM = 256  # syncs that may be under way

# Their numbers are another on every kind of machine: setup, destroy, getevents, submit.
_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}

_REQUEST = Struct("=QIIHhIQQqQII")  # struct iocb, where bytes lie as they do on these machines
_EVENT = Struct("=QQqq")  # struct io_event
_RING = 1  # IOCB_FLAG_RESFD


class What(IntEnum):
    """IOCB_CMD_FSYNC, which a folder needs, and IOCB_CMD_FDSYNC, which will do for bytes."""

    EVERYTHING = 2
    DATA = 3


class Sync(NamedTuple):
    """An open descriptor, and how much of it is to be durable."""

    descriptor: int
    what: What


class _Waiting:
    """Who waits for how many more syncs, and the first error of one."""

    def __init__(self, outcome: asyncio.Future[None], left: int) -> None:
        self.outcome = outcome
        self.left = left
        self.error = 0


class KernelSyncs:
    """For one event loop at a time. Raises OSError where the kernel does not offer this."""

    def __init__(self) -> None:
        setup, *self._numbers = _numbers()
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        if self._call(ctypes.c_long(setup), ctypes.c_uint(ROOM), ctypes.byref(self._context)):
            raise OSError(ctypes.get_errno(), "io_setup")
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = ctypes.create_string_buffer(ROOM * _EVENT.size)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._begun = 0
        self._under_way = 0

    def begin(self, syncs: Sequence[Sync]) -> asyncio.Future[None] | None:
        """Done once all of them are; raises OSError if one failed. Descriptors may be closed now.

        None where the kernel does not take them all, now or ever: sync them another way.
        """
        if self._under_way + len(syncs) > ROOM:
            return None
        loop = asyncio.get_running_loop()
        self._listen_on(loop)
        self._begun += 1
        taken = self._submit(syncs)
        self._under_way += max(taken, 0)
        if taken < len(syncs):
            return None
        outcome = loop.create_future()
        self._waiting[self._begun] = _Waiting(outcome, len(syncs))
        return outcome

    def close(self) -> None:
        """Waits for what is under way, and tells nobody."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._bell)
        self._call(ctypes.c_long(self._numbers[0]), self._context)
        os.close(self._bell)

    def _submit(self, syncs: Sequence[Sync]) -> int:
        requests = ctypes.create_string_buffer(b"".join(map(self._request, syncs)))
        first, size = ctypes.addressof(requests), _REQUEST.size
        places = (ctypes.c_void_p * len(syncs))(*range(first, first + size * len(syncs), size))
        number, count = ctypes.c_long(self._numbers[2]), ctypes.c_long(len(syncs))
        return int(self._call(number, self._context, count, places))

    def _request(self, sync: Sync) -> bytes:
        descriptor, what = sync
        return _REQUEST.pack(self._begun, 0, 0, what, 0, descriptor, 0, 0, 0, 0, _RING, self._bell)

    def _listen_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            self._loop = loop
            loop.add_reader(self._bell, self._rung)

    def _rung(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return
        number, none = ctypes.c_long(self._numbers[1]), ctypes.c_long(0)
        done = self._call(number, self._context, none, ctypes.c_long(ROOM), self._events, None)
        for place in range(max(done, 0)):
            begun, _, result, _ = _EVENT.unpack_from(self._events, place * _EVENT.size)
            self._under_way -= 1
            self._tell(begun, result)

    def _tell(self, begun: int, result: int) -> None:
        """A failed sync is told when the others are done, too; a result below 0 is an errno."""
        waiting = self._waiting.get(begun)
        if waiting is None:  # not all were taken
            return
        waiting.left -= 1
        waiting.error = waiting.error or -result
        if waiting.left:
            return
        del self._waiting[begun]
        if waiting.outcome.done():  # its caller has gone away
            return
        if waiting.error:
            waiting.outcome.set_exception(OSError(waiting.error, os.strerror(waiting.error)))
        else:
            waiting.outcome.set_result(None)


def open_kernel_syncs() -> KernelSyncs | None:
    """None where the kernel is another, or does not let us."""
    try:
        return KernelSyncs()
    except OSError:
        return None


def _numbers() -> tuple[int, int, int, int]:
    machine = platform.machine()
    if sys.platform != "linux" or sys.maxsize < 2**32 or machine not in _NUMBERS:
        raise OSError("no such requests are known here")
    return _NUMBERS[machine]
