"""Last position of a log that also holds the events of the keys a test makes."""

from __future__ import annotations

from application.ports.event_log import EventLog
from domain.access.events import AccessEvent


async def last_position(log: EventLog) -> int:
    """The position of the last event that is not about a key or a sign-in; 0 if there is none."""
    events = await log.read(0, limit=1_000_000)
    return max(
        (one.position for one in events if not isinstance(one.event, AccessEvent)), default=0
    )
