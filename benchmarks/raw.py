"""Raw limits of sockets and disk, to compare the other figures with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Ratio, Run, measure_in_rotation
from benchmarks.senders import CONNECTIONS, send_small, send_stream
from benchmarks.servers import sink
from benchmarks.uploads import GIB, MIB, SMALL, bare_head, bare_request

ROUNDS = 5
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def run(scale: float) -> list[Ratio]:
    """Print interleaved rates; no peer is measured."""
    size, files = int(GIB * scale), int(2_000 * scale)
    with (
        TemporaryDirectory(prefix="uptrail-bench-") as folder,
        sink("protocol") as plain,
        sink("buffered") as buffered,
    ):
        requests = [bare_request(SMALL)] * files
        runs = {
            "socket, a bytes object a read": lambda: _send_to_sink(plain.port, size),
            "socket, one buffer for all": lambda: _send_to_sink(buffered.port, size),
            "disk, written": lambda: _write_file(Path(folder), size, sync=False),
            "disk, written and synced": lambda: _write_file(Path(folder), size, sync=True),
        }
        _print_rates("MiB/s", runs)
        runs = {
            "socket, 8 requests at once": lambda: send_small(plain.port, requests),
            "disk, 10 KiB files, one by one": partial(
                _sync_small_files, Path(folder), files // 4, 1
            ),
            "disk, the same, 8 at once": partial(
                _sync_small_files, Path(folder), files, CONNECTIONS
            ),
        }
        _print_rates("files/s", runs)
    return []


def _print_rates(unit: str, runs: dict[str, Callable[[], float]]) -> None:
    for run_once in runs.values():
        run_once()
    samples = measure_in_rotation(
        ROUNDS, {name: partial(_as_run, run_once) for name, run_once in runs.items()}
    )
    for name, sample in samples.items():
        print(f"    {name:32} {sample} {unit}", flush=True)


def _as_run(run_once: Callable[[], float]) -> Run:
    return Run(run_once())


def _send_to_sink(port: int, size: int) -> float:
    """Return the MiB/s that a process receives and drops."""
    return send_stream(port, bare_head(size), size) / MIB


def _write_file(folder: Path, size: int, *, sync: bool) -> float:
    """Return the MiB/s into one new file, in blocks of 1 MiB."""
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


def _sync_small_files(folder: Path, files: int, at_once: int) -> float:
    """Return the new 10 KiB files per second, with an fdatasync for each."""
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
