"""Retry policy: exponential backoff with full jitter."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeAlias

import msgspec


class RetryAt(msgspec.Struct, frozen=True):
    """Retry at this time (UTC)."""

    at: datetime


class GiveUp(msgspec.Struct, frozen=True):
    """Do not retry; `reason` is for people."""

    reason: str


RetryDecision: TypeAlias = RetryAt | GiveUp


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exponential backoff with full jitter, in seconds.

    Source of the rule: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    attempts: int = 3
    first_delay: float = 1.0
    longest_delay: float = 300.0
    factor: float = 2.0

    def decide(
        self, failures: int, *, permanent: bool, at: datetime, random: float
    ) -> RetryDecision:
        """Decide after failure number `failures` (from 1); `random` is in [0, 1)."""
        if permanent:
            return GiveUp("the error is permanent")
        if failures >= self.attempts:
            return GiveUp(f"all {self.attempts} attempts failed")
        return RetryAt(at + timedelta(seconds=self.ceiling(failures) * random))

    def ceiling(self, failures: int) -> float:
        """Return the longest delay, in seconds, after this many failures."""
        exponent = min(failures - 1, 64)
        return float(min(self.longest_delay, self.first_delay * self.factor**exponent))
