"""Small files through the default pipeline, to `UploadCompleted`, with all roles in one process.

The budget is 500 files/s on a machine where a server that only stores reaches 600. The peer here
only stores, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias
from urllib.request import Request, urlopen

import msgspec

from application.views import BatchView
from benchmarks import cpu
from benchmarks.measure import Rate, Ratio, measure_alternating
from benchmarks.senders import send_small
from benchmarks.servers import Server, bare_receiver, uptrail
from benchmarks.uploads import bare_request, bundle, creation, start_batch

TEXT = b"All work and no play makes Jack a dull boy.\n" * 233  # 10 KiB
BUNDLE = 250  # files
COMPLETION_TIMEOUT = 600.0  # seconds for all files of a run
POLL_INTERVAL = 0.1  # seconds

Prepare: TypeAlias = Callable[[Server, str, list[str]], list[bytes]]
"""Builds the requests that upload these files to a batch."""

_batch = msgspec.json.Decoder(BatchView).decode


def run(scale: float) -> list[Ratio]:
    """Measure 10 KiB files, single and bundled, from the first byte to the last completion."""
    files = int(2000 * scale)
    with (
        TemporaryDirectory() as folder,
        uptrail(Path(folder) / "us") as us,
        bare_receiver(Path(folder) / "bare") as bare,
    ):
        stored = [bare_request(TEXT)] * files
        return [
            _compare(row, us, files, prepare, partial(send_small, bare.port, stored))
            for row, prepare in (
                ("10 KiB files, processed", _one_by_one),
                ("10 KiB files, bundled, processed", _bundled),
            )
        ]


def _compare(row: str, us: Server, files: int, prepare: Prepare, theirs: Rate) -> Ratio:
    """Measure both, alternating; processor time is that of Uptrail without its database."""
    runs = count()

    def ours() -> float:
        next(runs)
        batch = start_batch(us)
        requests = prepare(us, batch, [f"{number}.txt" for number in range(files)])
        begun = time.perf_counter()
        send_small(us.port, requests)
        _wait(us, batch, files)
        return files / (time.perf_counter() - begun)

    before = cpu.of_process(us.process.pid)
    mine, stored = measure_alternating(3, ours, theirs)
    taken = 1000 * (cpu.of_process(us.process.pid) - before) / (files * next(runs))
    note = f"the budget is 500 files/s; {taken:.2f} ms of the server's processor time a file"
    return Ratio(row, "files/s", mine, "bare receiver, storing", stored, 0.0, note)


def _one_by_one(us: Server, batch: str, names: list[str]) -> list[bytes]:
    """Build a request for each file."""
    return [creation(us, batch, name, TEXT) for name in names]


def _bundled(us: Server, batch: str, names: list[str]) -> list[bytes]:
    """Build requests of `BUNDLE` files each, as `uptrail upload` sends them."""
    some = range(0, len(names), BUNDLE)
    return [bundle(us, batch, names[first : first + BUNDLE], TEXT) for first in some]


def _wait(server: Server, batch: str, files: int) -> None:
    """Wait until every upload of the batch is completed."""
    deadline = time.monotonic() + COMPLETION_TIMEOUT
    url = f"http://127.0.0.1:{server.port}{batch}"
    asked = Request(url, headers={"Authorization": f"Bearer {server.key}"})
    while time.monotonic() < deadline:
        with urlopen(asked) as answer:
            counts = _batch(answer.read()).counts
        if counts.get("completed") == files:
            return
        time.sleep(POLL_INTERVAL)
    raise TimeoutError(f"after {COMPLETION_TIMEOUT:.0f} s the batch had {counts}")
