"""Latency of HEAD while a transfer holds the upload: the newest request preempts it.

No peer is measured: median and maximum are printed for HEAD to the receiving process, to another
process on the same database and, as the lower limit, without a transfer to preempt.
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

ARRIVED = MIB  # bytes sent before the sender stalls
SIZE = 2 * ARRIVED
SENT = 64 * MIB
BUDGET = 100  # milliseconds

Takeover = Callable[[], float]
"""Preempts one transfer; returns the milliseconds until the offset was known."""


def run(scale: float) -> list[Ratio]:
    rounds = max(10, int(100 * scale))
    with TemporaryDirectory() as folder:
        data = Path(folder) / "us"
        with uptrail(data, "api") as here, uptrail(data, "api") as there:
            scenarios = _Scenarios(data, here)
            takeovers: dict[str, Takeover] = {
                "a disk's fdatasync of 1 MiB": lambda: _sync(Path(folder)),
                "no transfer": scenarios.idle,
                "stuck, same process": lambda: scenarios.stuck(here),
                "stuck, another process": lambda: scenarios.stuck(there),
                "sending, same process": lambda: scenarios.sending(here),
                "sending, another process": lambda: scenarios.sending(there),
            }
            measured = [[takeover() for takeover in takeovers.values()] for _ in range(rounds)]
    for name, times in zip(takeovers, zip(*measured, strict=True), strict=True):
        _print_latencies(name, sorted(times))
    print(f"  (budget: {BUDGET} ms)")
    return []


def _print_latencies(name: str, times: list[float]) -> None:
    percentile_95 = times[int(len(times) * 0.95)]
    print(
        f"  {name:28} median {median(times):5.0f} ms, 95 of 100 in {percentile_95:4.0f} ms,"
        f" worst {times[-1]:4.0f} ms of {len(times)}",
        flush=True,
    )


class _Scenarios:
    """Transfers to one process, preempted by HEAD requests."""

    def __init__(self, data: Path, receiver: Server) -> None:
        self._data = data
        self._receiver = receiver
        self._numbers = count()

    def idle(self) -> float:
        return _ask_offset(self._receiver, self._created(SIZE))[0]

    def stuck(self, asked: Server) -> float:
        """Preempt a transfer whose sender has stalled."""
        location = self._created(SIZE)
        with socket.create_connection(("127.0.0.1", self._receiver.port)) as connection:
            connection.sendall(patch(self._receiver, location, SIZE))
            connection.sendall(bytes(ARRIVED))
            self._wait_for(location, ARRIVED)
            taken, offset = _ask_offset(asked, location)
        if offset != ARRIVED:
            raise ValueError(f"{offset} bytes count of {ARRIVED}")
        return taken

    def sending(self, asked: Server) -> float:
        """Preempt a transfer whose sender is still sending."""
        location = self._created(GIB)
        with socket.create_connection(("127.0.0.1", self._receiver.port)) as connection:
            connection.sendall(patch(self._receiver, location, GIB))
            sender = Thread(target=_send_forever, args=(connection,))
            sender.start()
            self._wait_for(location, SENT)
            taken, offset = _ask_offset(asked, location)
            connection.shutdown(socket.SHUT_RDWR)
            sender.join()
        self._stored(location).unlink()
        if offset < SENT:
            raise ValueError(f"{offset} bytes count, {SENT} had arrived")
        return taken

    def _created(self, size: int) -> str:
        return create(self._receiver, f"{next(self._numbers)}", size)

    def _wait_for(self, location: str, size: int) -> None:
        while not self._stored(location).exists() or self._stored(location).stat().st_size < size:
            time.sleep(0.005)

    def _stored(self, location: str) -> Path:
        name = f"uploads_{location.rpartition('/')[2]}"
        return next(self._data.glob(f"blobs/*/{name}"), self._data / "none")


def _send_forever(connection: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection.sendall(bytes(ARRIVED))


def _ask_offset(server: Server, location: str) -> tuple[float, int]:
    """Request the offset; return the milliseconds that it took, and the offset."""
    request = head_of(server, "HEAD", location, {"Tus-Resumable": "1.0.0"}, 0)
    begun = time.perf_counter()
    answer = ask(server.port, request)
    taken = 1000 * (time.perf_counter() - begun)
    offset = re.search(rb"upload-offset: (\d+)", answer.lower())
    assert offset is not None, answer
    return taken, int(offset[1])


def _sync(folder: Path) -> float:
    """Return the milliseconds of the fdatasync that every preemption waits for."""
    descriptor = os.open(folder / "synced", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, os.urandom(ARRIVED))
        begun = time.perf_counter()
        os.fdatasync(descriptor)
        return 1000 * (time.perf_counter() - begun)
    finally:
        os.close(descriptor)
