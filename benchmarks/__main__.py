"""Uptrail and its peers side by side: runs benchmarks, prints every figure and then the ratios."""

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
    """What is run, with the share of the work that is asked for, and what it tells."""

    run: Callable[[float], list[Ratio]]
    tells: str


BENCHMARKS: Mapping[str, Benchmark] = {
    "raw": Benchmark(raw.run, "what sockets and disk can do at all"),
    "one-stream": Benchmark(side_by_side.one_stream, "1 GiB in one PATCH, beside three servers"),
    "small-files": Benchmark(side_by_side.small_files, "10 KiB files, one request each, likewise"),
    "bundles": Benchmark(side_by_side.bundles, "10 KiB files, 500 to a request"),
    "processed": Benchmark(processing.run, "10 KiB files through the default pipeline"),
    "memory": Benchmark(memory.run, "server memory: 1 GiB, and 1,000 uploads at once"),
    "s3": Benchmark(s3.run, "bytes into a SeaweedFS, beside a plain client"),
    "takeover": Benchmark(takeover.run, "how soon the newest request wins"),
    "appends": Benchmark(appends.run, "events a second, 128 appends at once"),
    "projection": Benchmark(projection.run, "the read model built from the log"),
    "control": Benchmark(control.run, "pause, resume, cancel, retry of 100,000 uploads"),
    "large-batch": Benchmark(large_batch.run, "100,000 files come in; pages and control meanwhile"),
    "feed": Benchmark(feed.run, "1,000 sockets, and 20,000 progress events a second"),
    "growth": Benchmark(growth.run, "what a file costs as its batch grows"),
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
    listed = "\n".join(f"  {name:{width}}  {told.tells}" for name, told in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"benchmarks, all of which run where none is named:\n{listed}\n\n"
        "docs/performance.md says how they measure and what they found.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to run, in this order")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a look")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; see --help")
    return arguments


if __name__ == "__main__":
    main()
