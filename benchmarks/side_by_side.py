"""Uploads over HTTP, ours beside two other tus servers and a receiver that does nothing else.

Every turn starts its server anew on an empty folder and warms it up; the turns go A B C D, B C D A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.contenders import BARE, BUNDLES, OURS, TUS_NODE, TUSPY, Contender
from benchmarks.measure import Ratio, Run, Sample, in_rotation
from benchmarks.peers.installing import Missing
from benchmarks.senders import send_small, send_stream
from benchmarks.servers import Server
from benchmarks.uploads import GIB, MIB, SMALL
from infrastructure.blobs.local.packs import members, pack_id_from_file

ROUNDS = 3
WARM_FILES, WARM_BYTES = 500, 64 * MIB


def small_files(scale: float) -> list[Ratio]:
    """10 KiB files, creation-with-upload into one batch, 8 at once, history on."""
    files = max(200, int(2_000 * scale))
    row = "10 KiB files, one request each"
    targets = {OURS: 0.0, TUS_NODE: 1.5, TUSPY: 0.0, BARE: 0.7}
    return _compare(row, "files/s", targets, partial(_small_turn, files=files))


def bundles(scale: float) -> list[Ratio]:
    """The same files, 500 to a tar archive, against one request each."""
    files = max(1_000, int(4_000 * scale))
    row = "10 KiB files, 500 a bundle"
    targets = {BUNDLES: 0.0, TUS_NODE: 5.0, OURS: 0.0}
    return _compare(row, "files/s", targets, partial(_small_turn, files=files))


def one_stream(scale: float) -> list[Ratio]:
    """1 GiB in one PATCH."""
    size = int(GIB * scale)
    row = f"{size // MIB:,} MiB in one stream"
    targets = {OURS: 0.0, TUS_NODE: 1.8, TUSPY: 1.3, BARE: 0.9}
    return _compare(row, "MiB/s", targets, partial(_stream_turn, size=size))


def _compare(
    row: str, unit: str, targets: Mapping[Contender, float], turn: Callable[[Contender], Run]
) -> list[Ratio]:
    """Prints every contender's figures; the ratios are those of the first to the others."""
    ours, *others = [contender for contender in targets if not _missing(contender)]
    samples = in_rotation(ROUNDS, {c.name: partial(turn, c) for c in (ours, *others)})
    _print(row, unit, samples)
    mine = samples[ours.name]
    return [
        _ratio(row, unit, mine, c.name, samples.get(c.name), targets[c])
        for c in targets
        if c is not ours
    ]


def _ratio(
    row: str, unit: str, mine: Sample, peer: str, theirs: Sample | None, target: float
) -> Ratio:
    if theirs is None:
        return Ratio(row, unit, mine.rate, peer, nan, target, "not measured")
    note = f"CPU {mine.cpu / theirs.cpu:.2f} of its"
    return Ratio(row, unit, mine.rate, peer, theirs.rate, target, note)


def _missing(contender: Contender) -> bool:
    """Installs what the contender needs, or says why it sits this out."""
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


def _small_turn(contender: Contender, files: int) -> Run:
    with _served(contender) as (server, folder):
        send_small(server.port, contender.small(server, WARM_FILES))
        requests = contender.small(server, files)
        used = server.cpu_seconds()
        rate = send_small(server.port, requests) * files / len(requests)
        _require_stored(folder, WARM_FILES + files, len(SMALL))
        return Run(rate, (server.cpu_seconds() - used) / files)


def _stream_turn(contender: Contender, size: int) -> Run:
    with _served(contender) as (server, folder):
        send_stream(server.port, contender.stream(server, WARM_BYTES), WARM_BYTES)
        head = contender.stream(server, size)
        used = server.cpu_seconds()
        rate = send_stream(server.port, head, size) / MIB
        _require_stored(folder, 1, size)
        return Run(rate, (server.cpu_seconds() - used) / (size / MIB))


@contextmanager
def _served(contender: Contender) -> Iterator[tuple[Server, Path]]:
    """A fresh server and its folder; what the last one stored is gone from memory and disk."""
    with TemporaryDirectory(prefix="uptrail-bench-") as parent:
        Path(parent).chmod(0o711)
        folder = Path(parent) / "served"
        with contender.serve(folder) as server:
            yield server, folder


def _require_stored(folder: Path, files: int, size: int) -> None:
    """Raises AssertionError where less is stored than was acknowledged."""
    stored = [found for found in _sizes(folder) if found == size]
    assert len(stored) >= files, f"{len(stored)} of {files} files of {size} bytes are there"


def _sizes(folder: Path) -> Iterator[int]:
    """Of all that is kept: a file each, or many in a pack of ours."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if (pack := pack_id_from_file(path.name)) is None:
            yield path.stat().st_size
            continue
        with path.open("rb") as file:
            yield from (packed.place.size for packed in members(file.fileno(), pack))
