"""The log in chunks, the next one on its way while the last one is being worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from application.append import RecordedEvent
from application.ports.event_log import EventLog

CHUNK = 2_000  # events


async def chunks(
    log: EventLog, after: int, *, upto: int | None = None, size: int = CHUNK
) -> AsyncGenerator[Sequence[RecordedEvent], None]:
    """Every event beyond position `after` up to `upto`, or to the end as of now, in order.

    Close it (`contextlib.aclosing`) when leaving early. Raises what `EventLog.read` raises.
    """
    ahead = _reading(log, after, size)
    try:
        while events := await ahead:
            last = len(events) < size or (upto is not None and events[-1].position >= upto)
            if not last:
                ahead = _reading(log, events[-1].position, size)
            if upto is not None and events[-1].position > upto:
                events = [recorded for recorded in events if recorded.position <= upto]
            if events:
                yield events
            if last:
                return
    finally:
        ahead.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await ahead


def _reading(log: EventLog, after: int, size: int) -> asyncio.Task[Sequence[RecordedEvent]]:
    async def read() -> Sequence[RecordedEvent]:
        return await log.read(after, limit=size)

    return asyncio.create_task(read(), name="read_log_ahead")
