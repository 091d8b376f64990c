"""Run benchmarks of Uptrail and its peers; print every figure and then the ratios."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks import (
    appends,
    control,
    feed,
    growth,
    large_batch,
    long_log,
    memory,
    processing,
    projection,
    raw,
    s3,
    side_by_side,
    takeover,
)
from benchmarks.measure import Ratio, table


class Benchmark(NamedTuple):
    """Function that runs a share of the full work (1.0 is all of it), and its description."""

    run: Callable[[float], list[Ratio]]
    description: str


BENCHMARKS: Mapping[str, Benchmark] = {
    "raw": Benchmark(raw.run, "raw limits of sockets and disk"),
    "one-stream": Benchmark(side_by_side.one_stream, "1 GiB in one PATCH, beside three servers"),
    "small-files": Benchmark(
        side_by_side.small_files, "10 KiB files, one request each, beside three servers"
    ),
    "bundles": Benchmark(side_by_side.bundles, "10 KiB files, 500 to a request"),
    "processed": Benchmark(processing.run, "10 KiB files through the default pipeline"),
    "memory": Benchmark(memory.run, "server memory: 1 GiB, and 1,000 uploads at once"),
    "s3": Benchmark(s3.run, "bytes into a SeaweedFS, beside a plain client"),
    "takeover": Benchmark(takeover.run, "latency of preempting an upload"),
    "appends": Benchmark(appends.run, "events/s, 128 concurrent appends"),
    "projection": Benchmark(projection.run, "rebuild of the read model from the log"),
    "control": Benchmark(control.run, "pause, resume, cancel, retry of 100,000 uploads"),
    "large-batch": Benchmark(large_batch.run, "100,000 files arrive, while pages are read"),
    "feed": Benchmark(feed.run, "1,000 sockets, and 20,000 progress events a second"),
    "growth": Benchmark(growth.run, "processor time per file as its batch grows"),
    "long-log": Benchmark(long_log.run, "append, load and list beside 5,000,000 events"),
}


def main() -> None:
    arguments = _arguments()
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores")
    ratios: list[Ratio] = []
    for name in arguments.names or BENCHMARKS:
        print(f"running {name} ... (load {os.getloadavg()[0]:.1f})", flush=True)
        ratios += BENCHMARKS[name].run(0.1 if arguments.quick else 1.0)
    if ratios:
        print(table(ratios))


def _arguments() -> argparse.Namespace:
    width = max(map(len, BENCHMARKS))
    listed = "\n".join(
        f"  {name:{width}}  {benchmark.description}" for name, benchmark in BENCHMARKS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"benchmarks (all run if none is named):\n{listed}\n\n"
        "docs/performance.md describes the methods and the results.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run, in this order")
    parser.add_argument("--quick", action="store_true", help="run a tenth of the work")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}; see --help")
    return arguments


if __name__ == "__main__":
    main()
