"""Uploads over HTTP to Uptrail, two other tus servers and a minimal receiver.

Every run starts a new server on an empty folder and warms it up, in the order A B C D, B C D A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.contenders import (
    BARE_RECEIVER,
    TUS_NODE,
    TUSPYSERVER,
    UPTRAIL,
    UPTRAIL_BUNDLES,
    Contender,
)
from benchmarks.measure import Ratio, Run, Sample, measure_in_rotation
from benchmarks.peers.installing import Missing
from benchmarks.senders import send_small, send_stream
from benchmarks.servers import Server
from benchmarks.uploads import GIB, MIB, SMALL
from infrastructure.blobs.local.packs import members, pack_id_from_file

ROUNDS = 3
WARM_FILES, WARM_BYTES = 500, 64 * MIB


def small_files(scale: float) -> list[Ratio]:
    """Measure 10 KiB files by creation-with-upload into one batch, 8 at once."""
    files = max(200, int(2_000 * scale))
    row = "10 KiB files, one request each"
    targets = {UPTRAIL: 0.0, TUS_NODE: 1.5, TUSPYSERVER: 0.0, BARE_RECEIVER: 0.7}
    return _compare(row, "files/s", targets, partial(_run_small_files, files=files))


def bundles(scale: float) -> list[Ratio]:
    """Measure 10 KiB files, 500 per tar archive, compared with one request each."""
    files = max(1_000, int(4_000 * scale))
    row = "10 KiB files, 500 a bundle"
    targets = {UPTRAIL_BUNDLES: 0.0, TUS_NODE: 5.0, UPTRAIL: 0.0}
    return _compare(row, "files/s", targets, partial(_run_small_files, files=files))


def one_stream(scale: float) -> list[Ratio]:
    """Measure 1 GiB in one PATCH."""
    size = int(GIB * scale)
    row = f"{size // MIB:,} MiB in one stream"
    targets = {UPTRAIL: 0.0, TUS_NODE: 1.8, TUSPYSERVER: 1.3, BARE_RECEIVER: 0.9}
    return _compare(row, "MiB/s", targets, partial(_run_stream, size=size))


def _compare(
    row: str, unit: str, targets: Mapping[Contender, float], run: Callable[[Contender], Run]
) -> list[Ratio]:
    """Print the figures of all contenders; return the ratios of the first to the others."""
    first, *others = [contender for contender in targets if not _is_missing(contender)]
    samples = measure_in_rotation(ROUNDS, {c.name: partial(run, c) for c in (first, *others)})
    _print(row, unit, samples)
    uptrail = samples[first.name]
    return [
        _ratio(row, unit, uptrail, c.name, samples.get(c.name), targets[c])
        for c in targets
        if c is not first
    ]


def _ratio(
    row: str, unit: str, uptrail: Sample, peer: str, theirs: Sample | None, target: float
) -> Ratio:
    if theirs is None:
        return Ratio(row, unit, uptrail.rate, peer, nan, target, "not measured")
    note = f"CPU {uptrail.cpu / theirs.cpu:.2f} of its"
    return Ratio(row, unit, uptrail.rate, peer, theirs.rate, target, note)


def _is_missing(contender: Contender) -> bool:
    """Install the contender; print the reason and return True if that is impossible."""
    try:
        contender.needs()
    except Missing as reason:
        print(f"  {contender.name} is not measured: {reason}", flush=True)
        return True
    return False


def _print(row: str, unit: str, samples: Mapping[str, Sample]) -> None:
    cost = f"CPU ms per {unit.partition('/')[0].rstrip('s')}"
    print(f"  {row:30} {unit:>10}   (lowest to highest)    {cost}")
    for name, sample in samples.items():
        print(f"    {name:28} {sample}", flush=True)


def _run_small_files(contender: Contender, files: int) -> Run:
    with _running_server(contender) as (server, folder):
        send_small(server.port, contender.small(server, WARM_FILES))
        requests = contender.small(server, files)
        used = server.cpu_seconds()
        rate = send_small(server.port, requests) * files / len(requests)
        _require_stored(folder, WARM_FILES + files, len(SMALL))
        return Run(rate, (server.cpu_seconds() - used) / files)


def _run_stream(contender: Contender, size: int) -> Run:
    with _running_server(contender) as (server, folder):
        send_stream(server.port, contender.stream(server, WARM_BYTES), WARM_BYTES)
        head = contender.stream(server, size)
        used = server.cpu_seconds()
        rate = send_stream(server.port, head, size) / MIB
        _require_stored(folder, 1, size)
        return Run(rate, (server.cpu_seconds() - used) / (size / MIB))


@contextmanager
def _running_server(contender: Contender) -> Iterator[tuple[Server, Path]]:
    """Run a new server; yield it and its folder, which is deleted afterwards."""
    with TemporaryDirectory(prefix="uptrail-bench-") as parent:
        Path(parent).chmod(0o711)
        folder = Path(parent) / "served"
        with contender.serve(folder) as server:
            yield server, folder


def _require_stored(folder: Path, files: int, size: int) -> None:
    """Raise AssertionError if fewer files are stored than were acknowledged."""
    stored = [found for found in _sizes(folder) if found == size]
    assert len(stored) >= files, f"{len(stored)} of {files} files of {size} bytes are there"


def _sizes(folder: Path) -> Iterator[int]:
    """Yield the sizes of stored files, including the members of pack files."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if (pack := pack_id_from_file(path.name)) is None:
            yield path.stat().st_size
            continue
        with path.open("rb") as file:
            yield from (packed.place.size for packed in members(file.fileno(), pack))
