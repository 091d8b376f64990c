"""Newest request wins: how soon a question for the offset is answered while a transfer is stuck.

Nothing is compared: median and worst are printed for a question to the process that receives, for
one to another process on the same database, and, for the floor, where nothing has to be stopped.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread

from benchmarks.measure import Ratio
from benchmarks.senders import ask
from benchmarks.servers import Server, uptrail
from benchmarks.uploads import GIB, MIB, create, head_of, patch

ARRIVED = MIB  # bytes that came before the sender went silent
SIZE = 2 * ARRIVED
POURED = 64 * MIB
BUDGET = 100  # milliseconds

Take = Callable[[], float]
"""Takes an upload over once; returns the milliseconds until the offset was known."""


def run(scale: float) -> list[Ratio]:
    rounds = max(10, int(100 * scale))
    with TemporaryDirectory() as folder:
        data = Path(folder) / "us"
        with uptrail(data, "api") as here, uptrail(data, "api") as there:
            plan = _Plan(data, here)
            takes: dict[str, Take] = {
                "a disk's fdatasync of 1 MiB": lambda: _sync(Path(folder)),
                "nothing is running": plan.idle,
                "stuck, same process": lambda: plan.stuck(here),
                "stuck, another process": lambda: plan.stuck(there),
                "pouring, same process": lambda: plan.pouring(here),
                "pouring, another process": lambda: plan.pouring(there),
            }
            measured = [[take() for take in takes.values()] for _ in range(rounds)]
    for name, times in zip(takes, zip(*measured, strict=True), strict=True):
        _tell(name, sorted(times))
    print(f"  (budget: {BUDGET} ms)")
    return []


def _tell(name: str, times: list[float]) -> None:
    most = times[int(len(times) * 0.95)]
    print(
        f"  {name:28} median {median(times):5.0f} ms, 95 of 100 in {most:4.0f} ms,"
        f" worst {times[-1]:4.0f} ms of {len(times)}",
        flush=True,
    )


class _Plan:
    """Transfers to one process, and questions about them."""

    def __init__(self, data: Path, receiver: Server) -> None:
        self._data = data
        self._receiver = receiver
        self._numbers = count()

    def idle(self) -> float:
        return _question(self._receiver, self._created(SIZE))[0]

    def stuck(self, asked: Server) -> float:
        """A transfer whose sender went silent a moment ago."""
        location = self._created(SIZE)
        with socket.create_connection(("127.0.0.1", self._receiver.port)) as connection:
            connection.sendall(patch(self._receiver, location, SIZE))
            connection.sendall(bytes(ARRIVED))
            self._wait_for(location, ARRIVED)
            taken, offset = _question(asked, location)
        if offset != ARRIVED:
            raise ValueError(f"{offset} bytes count of {ARRIVED}")
        return taken

    def pouring(self, asked: Server) -> float:
        """A transfer whose sender goes on as fast as it can."""
        location = self._created(GIB)
        with socket.create_connection(("127.0.0.1", self._receiver.port)) as connection:
            connection.sendall(patch(self._receiver, location, GIB))
            sender = Thread(target=_pour, args=(connection,))
            sender.start()
            self._wait_for(location, POURED)
            taken, offset = _question(asked, location)
            connection.shutdown(socket.SHUT_RDWR)
            sender.join()
        self._stored(location).unlink()
        if offset < POURED:
            raise ValueError(f"{offset} bytes count, {POURED} had arrived")
        return taken

    def _created(self, size: int) -> str:
        return create(self._receiver, f"{next(self._numbers)}", size)

    def _wait_for(self, location: str, size: int) -> None:
        while not self._stored(location).exists() or self._stored(location).stat().st_size < size:
            time.sleep(0.005)

    def _stored(self, location: str) -> Path:
        name = f"uploads_{location.rpartition('/')[2]}"
        return next(self._data.glob(f"blobs/*/{name}"), self._data / "none")


def _pour(connection: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection.sendall(bytes(ARRIVED))


def _question(server: Server, location: str) -> tuple[float, int]:
    """The milliseconds until the offset was known, and the offset."""
    request = head_of(server, "HEAD", location, {"Tus-Resumable": "1.0.0"}, 0)
    begun = time.perf_counter()
    answer = ask(server.port, request)
    taken = 1000 * (time.perf_counter() - begun)
    offset = re.search(rb"upload-offset: (\d+)", answer.lower())
    assert offset is not None, answer
    return taken, int(offset[1])


def _sync(folder: Path) -> float:
    """What this disk takes for the least that a takeover must wait for."""
    descriptor = os.open(folder / "synced", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, os.urandom(ARRIVED))
        begun = time.perf_counter()
        os.fdatasync(descriptor)
        return 1000 * (time.perf_counter() - begun)
    finally:
        os.close(descriptor)
