"""Deadlines for request heads, bodies and responses, checked in one periodic sweep.

Nothing here is on the path of a byte: a sweep compares counters with those of the sweep before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Protocol, Self

import msgspec

from infrastructure.settings import Settings

SWEEPS_PER_DEADLINE = 8
MIN_SWEEP_INTERVAL = 0.02  # seconds
MAX_SWEEP_INTERVAL = 1.0  # seconds


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds.

    `head` is for a whole request head, from the beginning of the connection or the first byte after
    a request. `keep_alive` is for the first byte of the next one. A body that is being read must
    bring a byte, and on average `min_rate` bytes a second, in every `body` seconds; a response must
    be taken at that rate in every `response` seconds.
    """

    head: float = 30.0
    keep_alive: float = 75.0
    body: float = 60.0
    response: float = 30.0
    min_rate: float = 128

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            keep_alive=settings.keep_alive_timeout,
            body=settings.transfer_idle_timeout,
            min_rate=settings.min_transfer_rate,
        )

    @property
    def interval(self) -> float:
        """Seconds between two sweeps."""
        shortest = min(self.head, self.body, self.response) / SWEEPS_PER_DEADLINE
        return min(MAX_SWEEP_INTERVAL, max(MIN_SWEEP_INTERVAL, shortest))


class Fault(Enum):
    SILENT = "silent"
    SLOW = "slow"


class TransferRate:
    """Transfer rate of a growing byte count, measured over consecutive time windows."""

    __slots__ = ("_last", "_last_change", "_since", "_start")

    def __init__(self) -> None:
        self._since: float | None = None

    def restart(self) -> None:
        """Restart the measurement: the time until now was not the peer's delay."""
        self._since = None

    def fault(self, now: float, total: int, window: float, rate: float) -> Fault | None:
        """Return the fault of the transfer, if any; `now` and `window` in seconds."""
        if self._since is None:
            self._since = self._last_change = now
            self._start = self._last = total
            return None
        if total != self._last:
            self._last, self._last_change = total, now
        elif now - self._last_change >= window:
            return Fault.SILENT
        elapsed = now - self._since
        if elapsed >= window:
            if total - self._start < rate * elapsed:
                return Fault.SLOW
            self._since, self._start = now, total
        return None


class HasDeadlines(Protocol):
    """Connection whose deadlines the sweep checks."""

    def check_deadlines(self, now: float) -> None:
        """End what has exceeded its deadline."""


class Sweep:
    """Periodic check of all connections, while there are any.

    `now` is a clock that only advances while the event loop runs: a loop that was blocked has not
    read from its sockets meanwhile, and must not count their senders as silent.
    """

    def __init__(self, interval: float, connections: Callable[[], Iterable[HasDeadlines]]) -> None:
        self.now = 0.0
        self._interval = interval
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._last_sweep = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Start the sweep if it is idle."""
        if self._timer is None:
            self._last_sweep = self._loop.time()
            self._schedule()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._sweep)

    def _sweep(self) -> None:
        at = self._loop.time()
        self.now += min(at - self._last_sweep, 2 * self._interval)
        self._last_sweep = at
        connections = tuple(self._connections())
        if not connections:
            self._timer = None
            return
        for connection in connections:
            connection.check_deadlines(self.now)
        self._schedule()
