"""Selection of the awaits at which processes die: some in the suite, every one by `make chaos`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import count

SECONDS = float(os.environ.get("CHAOS_SECONDS", "0"))


def awaits(most: int, step: int) -> Iterable[int]:
    """Rising from the first; in the suite only every so many, and so many at most."""
    return count(1) if SECONDS else range(1, most * step, step)
