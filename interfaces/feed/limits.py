"""What one client, or one principal, may take of the feed."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes."""

    message_size: int = 16 * 1024  # of one message from a client
    batches: int = 256  # followed at once on one socket
    sockets: int = 256  # open at once for one principal
    strangers: int = 64  # sockets that have not said yet who they are
    principal_buffer: int = 16 * 1024 * 1024  # that wait for all sockets of one principal
    first_message: float = 5.0  # for them to say so
    subscribe_burst: int = 20
    subscribe_rate: float = 2.0  # a second, once the burst is used up
    faults: int = 10  # messages that make no sense, before the socket is closed
    page: int = 500  # uploads in one frame
    tick: int = 5000  # uploads that are read at once for all clients together
    readers: int = 4  # clients that catch up at the same moment
    stuck: float = 30.0  # without draining at all, before the socket is closed
    recheck: float = 10.0  # between two looks whether a credential still holds
    warning: float = 60.0  # before a credential ends, its holder is told
    farewell: float = 2.0  # for a client to answer our close


class Allowance:
    """So many at once, then so many a second. Time is an argument."""

    def __init__(self, burst: int, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more is allowed now."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
