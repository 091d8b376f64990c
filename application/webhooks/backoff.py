"""How soon a delivery that failed is tried again: at once at first, over days in the end.

Source of the rule: the Standard Webhooks specification, version 1, "Deliverability and
reliability", whose schedule this is, drawn out to three days. It begins with two tries within two
seconds: most failures pass, and the later deliveries of a batch wait for the first one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

MINUTE, HOUR = 60.0, 3600.0

DELAYS = (
    *(0.25, 1.0, 5.0, 30.0, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE),
    *(HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR),
    *(12 * HOUR,) * 5,
)
"""Seconds after the first, second, third ... failure; 3 days and 4 hours in all."""

JITTER = 0.2  # the share by which a delay is longer or shorter, so that not all come at once
LONGEST_WISH = 24 * HOUR  # seconds that a receiver may ask us to wait


def next_try(
    failures: int, *, at: datetime, random: float, retry_after: str | None = None
) -> datetime | None:
    """When to try again after failure number `failures` (from 1); None: not any more.

    `random` lies in [0, 1). A receiver's own wish, a Retry-After header, is granted if it
    is for later.
    """
    if failures > len(DELAYS):
        return None
    delay = DELAYS[failures - 1] * (1 + JITTER * (2 * random - 1))
    return at + timedelta(seconds=max(delay, wish_of(retry_after, at)))


def wish_of(retry_after: str | None, at: datetime) -> float:
    """Seconds that the header asks for, bounded; 0 for none, and for what makes no sense.

    Source of the rule: RFC 9110 section 10.2.3: a number of seconds, or a date.
    """
    text = (retry_after or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), LONGEST_WISH) if len(text) < 10 else LONGEST_WISH
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    wish = (moment.replace(tzinfo=moment.tzinfo or UTC) - at).total_seconds()
    return min(max(0.0, wish), LONGEST_WISH)
