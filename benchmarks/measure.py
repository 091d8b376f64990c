"""Interleaved measurements, so that drift of the machine affects all alike, and their ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan, nan
from statistics import median

Rate = Callable[[], float]
"""Measures one run and returns its rate: items per second, higher is better."""


@dataclass(frozen=True)
class Run:
    """One run of one contender: items per second, and the server's CPU seconds per item."""

    rate: float
    cpu: float = nan


@dataclass(frozen=True)
class Sample:
    """All runs of one contender."""

    runs: tuple[Run, ...]

    @property
    def rate(self) -> float:
        return median(run.rate for run in self.runs)

    @property
    def cpu(self) -> float:
        return median(run.cpu for run in self.runs)

    def __str__(self) -> str:
        rates = [run.rate for run in self.runs]
        spread = f"{self.rate:10,.0f}   ({min(rates):,.0f} to {max(rates):,.0f})"
        return spread if isnan(self.cpu) else f"{spread:34} {1000 * self.cpu:8.2f}"


@dataclass(frozen=True)
class Ratio:
    """Uptrail's rate over a peer's; `target` is the budget, 0 if there is none."""

    what: str
    unit: str
    ours: float
    peer: str
    theirs: float
    target: float
    note: str = ""

    @property
    def value(self) -> float:
        return self.ours / self.theirs


def measure_alternating(rounds: int, ours: Rate, theirs: Rate) -> tuple[float, float]:
    """Return the medians of `rounds` runs of each, in the order A B A B, after a warm-up."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def measure_in_rotation(
    rounds: int, contenders: Mapping[str, Callable[[], Run]]
) -> dict[str, Sample]:
    """Run each `rounds` times, in the order A B C, B C A, C A B; runs warm up themselves."""
    names = list(contenders)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(contenders[name]())
    return {name: Sample(tuple(found)) for name, found in runs.items()}


def table(ratios: list[Ratio]) -> str:
    """Format the ratios as lines of text."""
    heading = f"{'':34} {'uptrail':>12} {'peer':>12}  {'ratio':>7} {'target':>7}"
    return "\n".join([heading, *map(_line, ratios)])


def _line(ratio: Ratio) -> str:
    target = f"{ratio.target:7.2f}" if ratio.target else " " * 7
    return (
        f"{ratio.what:34} {ratio.ours:12,.0f} {ratio.theirs:12,.0f}  "
        f"{ratio.value:7.2f} {target}  {ratio.unit}, peer: {ratio.peer}"
        + (f"; {ratio.note}" if ratio.note else "")
    )
