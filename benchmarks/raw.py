"""The raw limits beside which every figure stands: what the sockets and the disk can do at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Ratio, Run, in_rotation
from benchmarks.senders import CONNECTIONS, send_small, send_stream
from benchmarks.servers import sink
from benchmarks.uploads import GIB, MIB, SMALL, bare_head, bare_request

ROUNDS = 5
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def run(scale: float) -> list[Ratio]:
    """Nothing is compared: rates are printed, taken in turn."""
    size, files = int(GIB * scale), int(2_000 * scale)
    with (
        TemporaryDirectory(prefix="uptrail-bench-") as folder,
        sink("protocol") as plain,
        sink("buffered") as buffered,
    ):
        requests = [bare_request(SMALL)] * files
        turns = {
            "socket, a bytes object a read": lambda: _sunk(plain.port, size),
            "socket, one buffer for all": lambda: _sunk(buffered.port, size),
            "disk, written": lambda: _written(Path(folder), size, sync=False),
            "disk, written and synced": lambda: _written(Path(folder), size, sync=True),
        }
        _tell("MiB/s", turns)
        turns = {
            "socket, 8 requests at once": lambda: send_small(plain.port, requests),
            "disk, 10 KiB files, one by one": partial(_synced, Path(folder), files // 4, 1),
            "disk, the same, 8 at once": partial(_synced, Path(folder), files, CONNECTIONS),
        }
        _tell("files/s", turns)
    return []


def _tell(unit: str, turns: dict[str, Callable[[], float]]) -> None:
    for turn in turns.values():
        turn()
    samples = in_rotation(ROUNDS, {name: partial(_as_run, turn) for name, turn in turns.items()})
    for name, sample in samples.items():
        print(f"    {name:32} {sample} {unit}", flush=True)


def _as_run(turn: Callable[[], float]) -> Run:
    return Run(turn())


def _sunk(port: int, size: int) -> float:
    """MiB a second that a process receives and drops."""
    return send_stream(port, bare_head(size), size) / MIB


def _written(folder: Path, size: int, *, sync: bool) -> float:
    """MiB a second into one new file, written by blocks of 1 MiB."""
    block, path = bytes(MIB), folder / "one"
    begun = time.perf_counter()
    file = os.open(path, _NEW)
    for _ in range(size // MIB):
        os.write(file, block)
    if sync:
        os.fdatasync(file)
    took = time.perf_counter() - begun
    os.close(file)
    path.unlink()
    return size / MIB / took


def _synced(folder: Path, files: int, at_once: int) -> float:
    """New files of 10 KiB a second, each with an fdatasync of its own."""
    numbers = count()

    def one(_: int) -> Path:
        path = folder / f"small-{next(numbers)}"
        file = os.open(path, _NEW)
        os.write(file, SMALL)
        os.fdatasync(file)
        os.close(file)
        return path

    with ThreadPoolExecutor(at_once) as pool:
        begun = time.perf_counter()
        paths = list(pool.map(one, range(files)))
        took = time.perf_counter() - begun
    for path in paths:
        path.unlink()
    return files / took
