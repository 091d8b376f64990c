"""What an event of a batch assigns in its row."""

from __future__ import annotations

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
from domain.batch.state import BatchState, Counts, percent_of

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

_RUNNING: Columns = MappingProxyType({"paused": False, "pause_reason": None})


def batch_columns(event: BatchEvent) -> Columns:
    """States mirror `Batch.evolve`; numbers are those that the orchestrator counted."""
    match event:
        case BatchProgressed():
            return {
                **_counted(event.counts),
                "bytes_received": event.bytes_received,
                "bytes_total": event.bytes_total,
                "percent": event.percent,
            }
        case BatchStarted():
            return _started(event)
        case UploadsAdded() | BatchRetryRequested():
            return {}  # the next BatchProgressed counts them
        case BatchPrioritized(priority=priority):
            return {"priority": priority}
        case BatchSealed():
            return {"state": BatchState.SEALED, "sealed_at": event.at}
        case BatchPaused(reason=reason):
            return {"paused": True, "pause_reason": text(reason) or None}
        case BatchResumed():
            return _RUNNING
        case BatchCancelled() | BatchExpired():
            return {"state": BatchState.CANCELLING, **_RUNNING}
        case BatchReopened():
            return {"state": BatchState.SEALED, "outcome": None, "completed_at": None}
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
    }


def _completed(event: BatchCompleted) -> Columns:
    return {
        **_counted(event.counts),
        "state": BatchState.COMPLETED,
        "outcome": event.outcome,
        "percent": percent_of(event.counts, 0, 0),
        "completed_at": event.at,
    }


def _counted(counts: Counts) -> Columns:
    return {
        "counts": dict(counts),
        "uploads": sum(counts.values()),
    }
