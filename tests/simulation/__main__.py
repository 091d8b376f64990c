"""Run simulations: `python -m tests.simulation --seed 123`, `--seeds 1000` or `--minutes 60`."""

from __future__ import annotations

import argparse
import sys
from random import SystemRandom
from time import monotonic

from tests.simulation.simulation import SimulationFailed, simulate

SHOWN_EVERY = 30.0  # seconds


def main() -> int:
    """Return 1 if a law was broken, after printing the story and how to reproduce it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed and print its story")
    parser.add_argument("--seeds", type=int, help="run so many random seeds")
    parser.add_argument("--minutes", type=float, default=10.0, help="run random seeds for so long")
    chosen = parser.parse_args()
    try:
        if chosen.seed is not None:
            report = simulate(chosen.seed)
            print("\n".join(report.story))
            print(f"seed {report.seed}: every law holds, {report.events} events")
        else:
            _run_random(chosen.seeds, chosen.minutes * 60)
    except SimulationFailed as failed:
        print(failed)
        return 1
    return 0


def _run_random(count: int | None, seconds: float) -> None:
    random, began, done, events, shown = SystemRandom(), monotonic(), 0, 0, monotonic()
    while monotonic() - began < seconds if count is None else done < count:
        events += simulate(random.randrange(10**9)).events
        done += 1
        if monotonic() - shown > SHOWN_EVERY:
            shown = monotonic()
            print(f"{done} seeds, {events} events: every law holds", flush=True)
    print(f"{done} seeds, {events} events: every law holds")


if __name__ == "__main__":
    sys.exit(main())
