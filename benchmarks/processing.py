"""Small files through the default pipeline, to `UploadCompleted`, in one process that does it all.

The budget of the design is 500 files a second, where a server that merely stores does 600; the
peer here stores too, and no more.
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
from benchmarks.measure import Rate, Ratio, in_turn
from benchmarks.senders import send_small
from benchmarks.servers import Server, bare_receiver, uptrail
from benchmarks.uploads import bare_request, bundle, creation, start_batch

TEXT = b"All work and no play makes Jack a dull boy.\n" * 233  # 10 KiB
BUNDLE = 250  # files
PATIENCE = 600.0  # seconds for all files of a run
LOOK = 0.1  # seconds between two looks at the batch

Prepare: TypeAlias = Callable[[Server, str, list[str]], list[bytes]]
"""The requests that bring these files into a batch."""

_batch = msgspec.json.Decoder(BatchView).decode


def run(scale: float) -> list[Ratio]:
    """10 KiB files: from the first byte to the last `UploadCompleted`, sent in either way."""
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
    """Both in turn; the processor time is that of our server, its database not counted."""
    turns = count()

    def ours() -> float:
        next(turns)
        batch = start_batch(us)
        requests = prepare(us, batch, [f"{number}.txt" for number in range(files)])
        begun = time.perf_counter()
        send_small(us.port, requests)
        _wait(us, batch, files)
        return files / (time.perf_counter() - begun)

    before = cpu.of_process(us.process.pid)
    mine, stored = in_turn(3, ours, theirs)
    taken = 1000 * (cpu.of_process(us.process.pid) - before) / (files * next(turns))
    note = f"the budget is 500 files/s; {taken:.2f} ms of the server's processor time a file"
    return Ratio(row, "files/s", mine, "bare receiver, storing", stored, 0.0, note)


def _one_by_one(us: Server, batch: str, names: list[str]) -> list[bytes]:
    """A request for each file, 8 senders at once."""
    return [creation(us, batch, name, TEXT) for name in names]


def _bundled(us: Server, batch: str, names: list[str]) -> list[bytes]:
    """Some hundred files to a request, as the command sends them."""
    some = range(0, len(names), BUNDLE)
    return [bundle(us, batch, names[first : first + BUNDLE], TEXT) for first in some]


def _wait(server: Server, batch: str, files: int) -> None:
    """Returns when every upload of the batch is completed."""
    deadline = time.monotonic() + PATIENCE
    url = f"http://127.0.0.1:{server.port}{batch}"
    asked = Request(url, headers={"Authorization": f"Bearer {server.key}"})
    while time.monotonic() < deadline:
        with urlopen(asked) as answer:
            counts = _batch(answer.read()).counts
        if counts.get("completed") == files:
            return
        time.sleep(LOOK)
    raise TimeoutError(f"after {PATIENCE:.0f} s the batch had {counts}")
