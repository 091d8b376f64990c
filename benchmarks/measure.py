"""Rates taken in turn, so that a drifting machine drifts under both, and their ratios."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Rate = Callable[[], float]
"""Runs once and returns a rate: things per second, more is better."""


@dataclass(frozen=True)
class Ratio:
    """Our rate over a peer's; `target` is the budget of the design."""

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


def in_turn(rounds: int, ours: Rate, theirs: Rate) -> tuple[float, float]:
    """Medians of `rounds` runs of each, taken A B A B after one warm-up of each."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def table(ratios: list[Ratio]) -> str:
    """The ratios as lines of text."""
    heading = f"{'':34} {'uptrail':>12} {'peer':>12}  {'ratio':>7} {'target':>7}"
    return "\n".join([heading, *map(_line, ratios)])


def _line(ratio: Ratio) -> str:
    return (
        f"{ratio.what:34} {ratio.ours:12,.0f} {ratio.theirs:12,.0f}  "
        f"{ratio.value:7.2f} {ratio.target:7.2f}  {ratio.unit}, peer: {ratio.peer}"
        + (f"; {ratio.note}" if ratio.note else "")
    )
