"""Activity of a batch, derived from its row and the current time.

The row holds recorded facts: counts, when its work last moved, when files last arrived. A
stall is not recorded as an event: it is derived from these facts when a batch is read. API, feed,
command line and page all use this function.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from application.views import Activity, BatchView
from domain.batch.state import BatchState
from domain.upload.state import ENDED, INCOMING, UploadState

STALLED_AFTER = timedelta(seconds=60)
"""A batch that should be moving, and did not for so long, is stalled.

Transfers under way record progress every few seconds at the latest, so it is far above that.
"""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Doing(msgspec.Struct, frozen=True):
    """Activity of a batch, with its beginning and the time at which it changes by itself.

    At `until` it is another one, although nothing was recorded.
    """

    activity: Activity | None = None
    since: datetime | None = None
    until: datetime | None = None


def show_activity(batch: BatchView, now: datetime) -> BatchView:
    """Return the batch with its current activity."""
    doing = activity_of(batch, now)
    batch.activity = doing.activity
    batch.activity_since = doing.since
    batch.activity_until = doing.until
    return batch


def show_activity_then(batch: BatchView, then: datetime) -> BatchView:
    """Return the batch with its activity at a time in the past."""
    batch = show_activity(batch, then)
    batch.activity_until = None
    return batch


def activity_of(batch: BatchView, now: datetime) -> Doing:
    """Derive the activity of a batch; an empty Activity for one that is ending or has ended."""
    if batch.state not in (BatchState.OPEN, BatchState.SEALED):
        return Doing()
    if batch.paused:
        return Doing(Activity.PAUSED, batch.paused_at)
    incoming, working = _sum(batch, *INCOMING), _sum(batch, *_WORKING)
    arrival = batch.arrived_at
    if incoming and arrival is not None and now < arrival + STALLED_AFTER:
        return Doing(Activity.RECEIVING, until=arrival + STALLED_AFTER)
    if _sum(batch, UploadState.PROCESSING):  # a worker that is gone is found out by its heartbeat
        return Doing(Activity.PROCESSING)
    if working:
        return _moving(batch, now)
    if incoming:
        if arrival is not None:
            return Doing(Activity.STALLED, arrival)
        return Doing(Activity.WAITING_FOR_FILES, batch.active_at)
    if _sum(batch, UploadState.RETRY_SCHEDULED):
        return Doing(Activity.WAITING_FOR_RETRY, batch.active_at)
    if batch.state == BatchState.SEALED:  # everything has ended: the verdict is about to be found
        return _moving(batch, now)
    if _sum(batch, *ENDED):
        return Doing(Activity.WAITING_FOR_SEAL, batch.active_at)
    return Doing(Activity.WAITING_FOR_FILES, batch.active_at)


_WORKING = (UploadState.RECEIVED, UploadState.QUEUED, UploadState.PROCESSING)


def _moving(batch: BatchView, now: datetime) -> Doing:
    """Return the activity of a batch with work to do: active, or stalled after long inactivity."""
    end = batch.active_at + STALLED_AFTER
    if now < end:
        return Doing(Activity.PROCESSING, until=end)
    return Doing(Activity.STALLED, batch.active_at)


def _sum(batch: BatchView, *states: UploadState) -> int:
    return sum(batch.counts.get(state, 0) for state in states)
