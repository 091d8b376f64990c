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
SHORTEST_INTERVAL = 0.02  # seconds between two sweeps
LONGEST_INTERVAL = 1.0


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds.

    `head` is for a whole request head, from the beginning of the connection or the first byte after
    a request. `keep_alive` is for the first byte of the next one. A body that is asked for must
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
        return min(LONGEST_INTERVAL, max(SHORTEST_INTERVAL, shortest))


class Fault(Enum):
    SILENT = "silent"
    SLOW = "slow"


class Progress:
    """Transfer rate of a growing byte count, measured over consecutive time windows."""

    __slots__ = ("_last", "_moved_at", "_since", "_start")

    def __init__(self) -> None:
        self._since: float | None = None

    def restart(self) -> None:
        """Restart the measurement: the time until now was not the peer's delay."""
        self._since = None

    def fault(self, now: float, total: int, window: float, rate: float) -> Fault | None:
        """Return the fault of the transfer, if any; `now` and `window` in seconds."""
        if self._since is None:
            self._since = self._moved_at = now
            self._start = self._last = total
            return None
        if total != self._last:
            self._last, self._moved_at = total, now
        elif now - self._moved_at >= window:
            return Fault.SILENT
        elapsed = now - self._since
        if elapsed >= window:
            if total - self._start < rate * elapsed:
                return Fault.SLOW
            self._since, self._start = now, total
        return None


class Swept(Protocol):
    """Interface of a connection for the sweep."""

    def look(self, now: float) -> None:
        """End what has exceeded its deadline."""


class Sweep:
    """Periodic check of all connections, while there are any.

    `now` is a clock that only advances while the event loop runs: a loop that was blocked has not
    read from its sockets meanwhile, and must not take their senders for silent.
    """

    def __init__(self, interval: float, connections: Callable[[], Iterable[Swept]]) -> None:
        self.now = 0.0
        self._interval = interval
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._looked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Start the sweep if it is idle."""
        if self._timer is None:
            self._looked_at = self._loop.time()
            self._schedule()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._look)

    def _look(self) -> None:
        at = self._loop.time()
        self.now += min(at - self._looked_at, 2 * self._interval)
        self._looked_at = at
        connections = tuple(self._connections())
        if not connections:
            self._timer = None
            return
        for connection in connections:
            connection.look(self.now)
        self._schedule()
