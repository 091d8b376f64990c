"""`python -m benchmarks [NAME ...]`: run the benchmarks and print their ratios."""

from __future__ import annotations

import argparse
import os
import platform

from benchmarks import appends, bundles, control, growth, processing, projection, takeover, uploads
from benchmarks.measure import Ratio, table

BENCHMARKS = {
    "appends": appends.run,
    "control": control.run,
    "projection": projection.run,
    "small-files": uploads.small_files,
    "bundles": bundles.run,
    "processed": processing.run,
    "growth": growth.run,
    "one-stream": uploads.one_stream,
    "takeover": takeover.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a look")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores")
    ratios: list[Ratio] = []
    for name in arguments.names or BENCHMARKS:
        print(f"running {name} ...", flush=True)
        ratios += BENCHMARKS[name](0.1 if arguments.quick else 1.0)
    print(table(ratios))


if __name__ == "__main__":
    main()
