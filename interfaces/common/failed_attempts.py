"""Rate limit for failed authentication, by client address and by key id; in memory, per process.

Secrets have 256 random bits, so guessing one is hopeless at any rate. The limit keeps guesses from
filling the log and occupying the database. So it applies to failures only: a credential that holds
is accepted also where others fail from the same address or with the same key id, only its check
waits in a short queue then; a key that was confirmed a moment ago needs no check. Otherwise a
client with the same address, or one that knows the public id of a key, could lock its holder out.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web

from interfaces.common.forwarded import client_network
from interfaces.common.problems import Problem

MAX_ENTRIES = 10_000  # addresses, and key ids, that are remembered
MAX_LIMITED_CHECKS = 2  # at the same time, for clients beyond their limit
CHECK_TIMEOUT = 5.0  # seconds that such a client waits for its check

_KEY_ID = re.compile(r"up_([0-9a-f]{16})_", re.ASCII)

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Rate(msgspec.Struct, frozen=True):
    """Rate limit: a burst of failures, then one every `interval` seconds."""

    burst: int
    interval: float


PER_ADDRESS = Rate(20, 6.0)
PER_KEY = Rate(10, 10.0)


class TooManyAttempts(Problem):
    """Raised for an invalid credential after too many failed ones."""

    def __init__(self, seconds: float) -> None:
        after = max(1, math.ceil(seconds))
        super().__init__(
            429,
            "too_many_attempts",
            f"too many keys, sessions or login codes that do not hold; wait {after} seconds",
            headers={"Retry-After": str(after)},
        )
        self.retry_after = after


class _Buckets:
    """Token buckets by name; the name that failed least recently is forgotten first."""

    def __init__(self, rate: Rate, max_entries: int) -> None:
        self._rate = rate
        self._max_entries = max_entries
        self._full_at: dict[str, float] = {}  # when the name's bucket is full again

    def __len__(self) -> int:
        return len(self._full_at)

    def seconds_left(self, name: str, now: float) -> float:
        """Seconds until one more failure is allowed; 0 if one is allowed now."""
        full_at = self._full_at.get(name)
        if full_at is None:  # nearly always
            return 0.0
        return max(0.0, full_at - now - (self._rate.burst - 1) * self._rate.interval)

    def take(self, name: str, now: float) -> None:
        """Count a failure. Beyond the limit nothing is added: the wait does not grow."""
        full_at = max(now, self._full_at.pop(name, now))
        latest = now + self._rate.burst * self._rate.interval
        self._full_at[name] = min(latest, full_at + self._rate.interval)
        if len(self._full_at) > self._max_entries:
            del self._full_at[next(iter(self._full_at))]


class FailedAttempts:
    """Rate limiter for failed authentication in one process. `clock` returns seconds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        per_address: Rate = PER_ADDRESS,
        per_key: Rate = PER_KEY,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self._clock = clock
        self._addresses = _Buckets(per_address, max_entries)
        self._keys = _Buckets(per_key, max_entries)
        self._limited_checks = asyncio.Semaphore(MAX_LIMITED_CHECKS)
        self._refused = 0  # failures beyond the limit

    def __len__(self) -> int:
        return len(self._addresses) + len(self._keys)

    async def authenticate(
        self, address: str, kind: str, text: str, check: Callable[[], Awaitable[T | None]]
    ) -> T | None:
        """Return the result of `check`; None for an invalid credential.

        `kind` is for the log; of `text` only the public id of a key is looked at. Raises
        TooManyAttempts instead of returning None beyond the limit.
        """
        found = _KEY_ID.match(text)
        key = found[1] if found else ""
        if self._seconds_left(address, key) > 0:
            async with self._queued(address, key):
                result = await check()
        else:
            result = await check()
        if result is None:
            self._count(address, key, kind)
        return result

    def _seconds_left(self, address: str, key: str) -> float:
        now = self._clock()
        return max(self._keys.seconds_left(key, now), self._addresses.seconds_left(address, now))

    @asynccontextmanager
    async def _queued(self, address: str, key: str) -> AsyncIterator[None]:
        """Limit concurrent checks of clients beyond their limit. Raises TooManyAttempts."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await self._limited_checks.acquire()
        except TimeoutError:
            raise TooManyAttempts(self._seconds_left(address, key)) from None
        try:
            yield
        finally:
            self._limited_checks.release()

    def _count(self, address: str, key: str, kind: str) -> None:
        left, now = self._seconds_left(address, key), self._clock()
        self._addresses.take(address, now)
        if key:
            self._keys.take(key, now)
        if left <= 0:
            _log.warning("authentication_failed", kind=kind, address=address, key=key or None)
            return
        self._refused += 1
        # One line per failure would let any client fill the disk: log the 1st, 2nd, 4th, 8th ...
        if self._refused & (self._refused - 1) == 0:
            _log.warning(
                "authentication_limited",
                kind=kind,
                address=address,
                key=key or None,
                retry_after=math.ceil(left),
                refused=self._refused,
            )
        raise TooManyAttempts(left)


class ClientAttempts:
    """Authentication attempts of one client."""

    def __init__(self, attempts: FailedAttempts, address: str) -> None:
        self._attempts = attempts
        self._address = address

    async def authenticate(
        self, kind: str, text: str, check: Callable[[], Awaitable[T | None]]
    ) -> T | None:
        """See FailedAttempts.authenticate."""
        return await self._attempts.authenticate(self._address, kind, text, check)


ATTEMPTS: web.AppKey[FailedAttempts] = web.AppKey("failed_attempts", FailedAttempts)


def attempts_of(request: web.Request) -> ClientAttempts:
    return ClientAttempts(request.app[ATTEMPTS], client_network(request))
