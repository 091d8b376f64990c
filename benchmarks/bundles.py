"""Many small files in few requests: 500 to a tar archive, against one request each."""

from __future__ import annotations

import io
import tarfile
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Ratio, in_turn
from benchmarks.senders import send_small
from benchmarks.servers import Server, uptrail
from benchmarks.uploads import SMALL, creation, head_of, start_batch

FILES = 500  # in one bundle


def run(scale: float) -> list[Ratio]:
    """10 KiB files into one batch, history on: bundles against tus creation-with-upload."""
    bundles, singles, numbers = max(2, int(16 * scale)), int(2000 * scale), count()
    with TemporaryDirectory() as folder, uptrail(Path(folder) / "us", "api") as us:
        batch = start_batch(us)

        def together() -> float:
            requests = [_request(us, batch, numbers) for _ in range(bundles)]
            return FILES * send_small(us.port, requests)

        def one_by_one() -> float:
            requests = [creation(us, batch, f"{next(numbers)}.bin") for _ in range(singles)]
            return send_small(us.port, requests)

        mine, theirs = in_turn(3, together, one_by_one)
    note = "the budget is 5 times @tus/server"
    return [
        Ratio("10 KiB files, 500 a bundle", "files/s", mine, "one request each", theirs, 5.0, note)
    ]


def _request(server: Server, batch: str, numbers: count[int]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for _ in range(FILES):
            member = tarfile.TarInfo(f"{next(numbers)}.bin")
            member.size = len(SMALL)
            tar.addfile(member, io.BytesIO(SMALL))
    body = archive.getvalue()
    headers = {"Content-Type": "application/x-tar"}
    return head_of(server, "POST", f"{batch}/uploads", headers, len(body)) + body
