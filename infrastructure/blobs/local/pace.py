"""How quick the disk is: whether a write on the loop would hold up everybody else."""

from __future__ import annotations

from time import monotonic

SLOW = 0.02  # seconds: a write that takes this long is felt by everybody on the loop
SLOW_FOR = 1.0  # seconds for which writes then go to a thread


class Pace:
    """The disk as the last writes of all blobs found it.

    A write into the page cache takes microseconds, and a trip to a thread costs a third of the
    throughput; but once too much is dirty the kernel makes the writer wait.
    """

    def __init__(self) -> None:
        self._slow_until = 0.0

    @property
    def slow(self) -> bool:
        return monotonic() < self._slow_until

    def took_since(self, began: float) -> None:
        """A write that began at this time of the monotonic clock has just ended."""
        ended = monotonic()
        if ended - began > SLOW:
            self._slow_until = ended + SLOW_FOR
