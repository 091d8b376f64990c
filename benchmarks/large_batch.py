"""Arrival of a batch of 100,000 files, and the latency of other requests meanwhile.

No peer is measured: times and memory are printed beside their budgets.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Ratio
from benchmarks.senders import ask
from benchmarks.servers import Server, uptrail
from benchmarks.uploads import KIB, MIB, bundle, head_of, start_batch

FILES = 100_000
AT_ONCE = 10_000  # files of one declaration, as many as a request may have
IN_A_BUNDLE = 500
CONTENT = bytes(KIB)
ACCEPTED, PAGE, MEMORY = 15.0, 0.2, 300  # seconds, seconds, MiB: the budgets

Latencies = dict[str, list[float]]


def run(scale: float) -> list[Ratio]:
    files = int(FILES * scale)
    with TemporaryDirectory(prefix="uptrail-bench-") as folder:
        Path(folder).chmod(0o711)
        with uptrail(Path(folder) / "served") as server:
            batch = start_batch(server)
            _accept(server, batch, files)
            _receive(server, batch, files)
            _control(server, batch)
            peak = server.peak_memory() / MIB
            print(f"  memory, every role in one process: {peak:.0f} MiB (budget: {MEMORY})")
    return []


def _accept(server: Server, batch: str, files: int) -> None:
    requests = [_declaration(server, batch, some) for some in _in_parts(files, AT_ONCE)]

    def declare() -> None:
        for request in requests:
            ask(server.port, request)

    took, latencies = _measure_pages_during(server, batch, declare)
    print(f"  {files:,} files declared in {took:.1f} s (budget: {ACCEPTED:.0f} s)")
    _print_latencies(latencies)


def _receive(server: Server, batch: str, files: int) -> None:
    """Send the files in bundles, while earlier ones are processed."""
    parts = _in_parts(files, IN_A_BUNDLE)
    bundles = [bundle(server, batch, map(_name, numbers), CONTENT) for numbers in parts]

    def send() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda request: ask(server.port, request), bundles))

    took, latencies = _measure_pages_during(server, batch, send)
    print(f"  bytes of all of them taken in {took:.1f} s, while they are processed")
    _print_latencies(latencies)


def _control(server: Server, batch: str) -> None:
    """Time pause, resume and cancel while files are processed."""
    for action in ("pause", "resume", "cancel"):
        begun = time.perf_counter()
        ask(server.port, head_of(server, "POST", f"{batch}/{action}", {}, 0))
        _line(action, [time.perf_counter() - begun])


def _measure_pages_during(
    server: Server, batch: str, work: Callable[[], None]
) -> tuple[float, Latencies]:
    """Return the seconds of the work, and the latencies of pages during it."""
    failed: list[BaseException] = []

    def working() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    latencies: Latencies = defaultdict(list)
    thread = threading.Thread(target=working)
    begun = time.perf_counter()
    thread.start()
    asked = _pages(server, batch)
    while thread.is_alive():
        page, seconds = next(asked)
        latencies[page].append(seconds)
        thread.join(0.05)
    took = time.perf_counter() - begun
    if failed:
        raise failed[0]
    return took, latencies


def _pages(server: Server, batch: str) -> Iterator[tuple[str, float]]:
    """Request pages in rotation, without end; yield the name and seconds of each."""
    uploads = f"{batch}/uploads?limit=100"
    pages = {
        "batches": "/v1/batches",
        "the batch": batch,
        "its first uploads": uploads,
        "its next uploads": uploads,
        "those in one state": f"{uploads}&state=registered",
        "its history": f"{batch}/history?limit=100",
    }
    cursor = None
    for name, path in cycle(pages.items()):
        begun = time.perf_counter()
        page = _get(server, f"{path}&cursor={cursor}" if "next" in name and cursor else path)
        yield name, time.perf_counter() - begun
        if path is uploads:
            cursor = page["next"]


def _get(server: Server, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {server.key}"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return json.loads(body)
    finally:
        connection.close()


def _in_parts(files: int, at_once: int) -> list[range]:
    return [range(n, min(n + at_once, files)) for n in range(0, files, at_once)]


def _name(number: int) -> str:
    return f"{number:06}.bin"


def _declaration(server: Server, batch: str, numbers: Sequence[int]) -> bytes:
    lines = (f'{{"path":"{_name(n)}","size":{len(CONTENT)}}}\n' for n in numbers)
    body = "".join(lines).encode()
    headers = {"Content-Type": "application/x-ndjson"}
    return head_of(server, "POST", f"{batch}/uploads", headers, len(body)) + body


def _print_latencies(latencies: Latencies) -> None:
    for page, seconds in latencies.items():
        _line(page, seconds)


def _line(what: str, seconds: Sequence[float]) -> None:
    ordered = sorted(seconds)
    middle, worst = ordered[len(ordered) // 2], ordered[-1]
    times = f"median {1000 * middle:4.0f} ms, worst of {len(ordered)} {1000 * worst:4.0f} ms"
    print(f"    {what:20} {times} (budget: {1000 * PAGE:.0f} ms)", flush=True)
