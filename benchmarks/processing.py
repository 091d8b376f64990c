"""Small files through the default pipeline, to `UploadCompleted`, in one process that does it all.

The budget of the design is 500 files a second, where a server that merely stores does 600; the
peer here stores too, and no more.
"""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

import msgspec

from application.views import BatchView
from benchmarks import cpu
from benchmarks.measure import Ratio, in_turn
from benchmarks.senders import send_small
from benchmarks.servers import Server, bare_receiver, uptrail
from benchmarks.uploads import bare_request, creation, start_batch

TEXT = b"All work and no play makes Jack a dull boy.\n" * 233  # 10 KiB
PATIENCE = 600.0  # seconds for all files of a run
LOOK = 0.1  # seconds between two looks at the batch

_batch = msgspec.json.Decoder(BatchView).decode


def run(scale: float) -> list[Ratio]:
    """10 KiB files, 8 senders at once: from the first byte to the last `UploadCompleted`."""
    files, numbers = int(2000 * scale), count()
    with (
        TemporaryDirectory() as folder,
        uptrail(Path(folder) / "us") as us,
        bare_receiver(Path(folder) / "bare") as bare,
    ):

        def ours() -> float:
            batch = start_batch(us)
            requests = [creation(us, batch, f"{next(numbers)}.txt", TEXT) for _ in range(files)]
            begun = time.perf_counter()
            send_small(us.port, requests)
            _wait(us, batch, files)
            return files / (time.perf_counter() - begun)

        stored = [bare_request(TEXT)] * files
        before = cpu.of_process(us.process.pid)
        mine, theirs = in_turn(3, ours, lambda: send_small(bare.port, stored))
        taken = 1000 * (cpu.of_process(us.process.pid) - before) / next(numbers)
    note = f"the budget is 500 files/s; {taken:.2f} ms of the server's processor time a file"
    return [
        Ratio(
            "10 KiB files, processed", "files/s", mine, "bare receiver, storing", theirs, 0.5, note
        )
    ]


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
