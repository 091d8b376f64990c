"""What an event of a batch assigns in its row."""

from __future__ import annotations

from datetime import datetime
from types import MappingProxyType
from typing import assert_never

from application.projection.columns import Columns, text, tree
from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchErased,
    BatchEvent,
    BatchExpired,
    BatchPaused,
    BatchPrioritized,
    BatchProgressed,
    BatchReopened,
    BatchResumed,
    BatchRetryRequested,
    BatchSealed,
    BatchStarted,
    UploadsAdded,
)
from domain.batch.state import BatchState, Counts, Outcome, arrived_count, percent_of

BATCH_EVENTS = (
    BatchProgressed,
    BatchStarted,
    UploadsAdded,
    BatchSealed,
    BatchPaused,
    BatchResumed,
    BatchPrioritized,
    BatchRetryRequested,
    BatchCancelled,
    BatchExpired,
    BatchReopened,
    BatchCompleted,
    BatchErased,
)

_RUNNING: Columns = MappingProxyType({"paused": False, "pause_reason": None, "paused_at": None})


def batch_columns(event: BatchEvent) -> Columns:
    """States mirror `Batch.evolve`; numbers are those that the orchestrator counted."""
    match event:
        case BatchProgressed():
            return {
                **_counted(event.counts),
                "bytes_received": event.bytes_received,
                "bytes_total": event.bytes_total,
                "percent": event.percent,
                "active_at": event.at,
                "arrived_at": _arrived_at(event),
            }
        case BatchStarted():
            return _started(event)
        case UploadsAdded() | BatchRetryRequested():
            return {"active_at": event.at}  # the next BatchProgressed counts them
        case BatchPrioritized(priority=priority):
            return {"priority": priority}
        case BatchSealed():
            return {"state": BatchState.SEALED, "sealed_at": event.at, "active_at": event.at}
        case BatchPaused(reason=reason):
            return {"paused": True, "pause_reason": text(reason) or None, "paused_at": event.at}
        case BatchResumed():
            return {**_RUNNING, "active_at": event.at}
        case BatchCancelled() | BatchExpired():
            return {"state": BatchState.CANCELLING, **_RUNNING}
        case BatchReopened():
            reopened: Columns = {"outcome": None, "completed_at": None, "active_at": event.at}
            return {"state": BatchState.SEALED, **reopened}
        case BatchCompleted():
            return _completed(event)
        case BatchErased():
            return {"label": "", "metadata": {}, "pause_reason": None}
        case _:
            assert_never(event)


def _started(event: BatchStarted) -> Columns:
    return {
        "owner": event.owner,
        "label": text(event.label),
        "pipeline": event.pipeline,
        "priority": event.priority,
        "metadata": tree(event.metadata),
        "started_at": event.at,
        "started_by": event.by,
        "active_at": event.at,
    }


def _arrived_at(event: BatchProgressed) -> datetime | None:
    """For events of before this was recorded, when whatever has arrived was counted."""
    if event.arrived_at is None and (event.bytes_received or arrived_count(event.counts)):
        return event.at
    return event.arrived_at


def _completed(event: BatchCompleted) -> Columns:
    called_off = event.outcome in (Outcome.CANCELLED, Outcome.EXPIRED)
    return {
        **_counted(event.counts),
        "state": BatchState.COMPLETED,
        "outcome": event.outcome,
        "percent": percent_of(event.counts, 0, 0, called_off=called_off),
        "completed_at": event.at,
        "active_at": event.at,
    }


def _counted(counts: Counts) -> Columns:
    return {
        "counts": dict(counts),
        "uploads": sum(counts.values()),
    }
