"""Columns that each event assigns in the rows of the read model.

Columns are assigned from one event alone, never incremented and never read. In a row of an upload,
`error` and `error_step` are of the last failure until an attempt succeeds; `retry_at` is set only
while a retry is due; `phase` and `percent` are of the current work.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeAlias, assert_never

import msgspec

from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchErased,
    BatchEvent,
    BatchExpired,
    BatchPaused,
    BatchPrioritized,
    BatchProgressed,
    BatchRenamed,
    BatchReopened,
    BatchResumed,
    BatchRetryRequested,
    BatchSealed,
    BatchStarted,
    UploadsAdded,
)
from domain.batch.state import BatchState, Counts, Outcome, arrived_count, percent_of
from domain.upload.events import (
    TRANSFER,
    AttemptAbandoned,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    BytesLost,
    FileProgressed,
    FileReceived,
    RetryRequested,
    SizeDeclared,
    TransferInterrupted,
    UploadCancelled,
    UploadCompleted,
    UploadErased,
    UploadEvent,
    UploadExpired,
    UploadFailed,
    UploadQuarantined,
    UploadQueued,
    UploadRegistered,
    UploadRejected,
    UploadReleased,
)
from domain.upload.state import UploadState

Columns: TypeAlias = Mapping[str, Any]
"""Column names and the values to assign. Read-only: the fold merges into mappings of its own."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_NUL = "\0"
_REPLACEMENT = "\ufffd"


def strip_nul(value: str) -> str:
    """Replace NUL characters, which PostgreSQL cannot store in text.

    The message of an exception may hold one; it must not stop the projection.
    """
    return value.replace(_NUL, _REPLACEMENT) if _NUL in value else value


def strip_nul_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a JSON object, such as the result of a step, with NUL characters replaced.

    A copy, so that a row never shares a mutable value with its event.
    """
    if not value:
        return {}
    encoded = _encode(value)
    if b"\\u0000" not in encoded:  # far quicker than walking through it
        return _decode(encoded)
    cleaned: dict[str, Any] = _strip_nul_value(value)
    return cleaned


def _strip_nul_value(value: Any) -> Any:
    match value:
        case str():
            return strip_nul(value)
        case dict():
            return {strip_nul(key): _strip_nul_value(item) for key, item in value.items()}
        case list():
            return [_strip_nul_value(item) for item in value]
        case _:
            return value


_RUNNING: Columns = MappingProxyType({"paused": False, "pause_reason": None, "paused_at": None})


def batch_columns(event: BatchEvent) -> Columns:
    """Return the columns of a batch; states mirror `Batch.evolve`, numbers are the last counts."""
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
        case BatchRenamed(label=label):
            return {"label": strip_nul(label)}
        case BatchSealed():
            return {"state": BatchState.SEALED, "sealed_at": event.at, "active_at": event.at}
        case BatchPaused(reason=reason):
            return {
                "paused": True,
                "pause_reason": strip_nul(reason) or None,
                "paused_at": event.at,
            }
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
        "label": strip_nul(event.label),
        "pipeline": event.pipeline,
        "priority": event.priority,
        "metadata": strip_nul_json(event.metadata),
        "started_at": event.at,
        "started_by": event.by,
        "active_at": event.at,
    }


def _arrived_at(event: BatchProgressed) -> datetime | None:
    """Return when bytes last arrived, or were counted in events from before that was recorded."""
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


def upload_columns(event: UploadEvent) -> Columns:
    """Return the columns of an upload; states mirror `Upload.evolve`."""
    match event:
        case FileProgressed():
            return _progressed(event)
        case UploadRegistered():
            return _registered(event)
        case UploadRejected():
            return _rejected(event)
        case SizeDeclared(size=size):
            return {"size": size}
        case TransferInterrupted(received=received):
            # The last recorded percent stands: this event does not know the size.
            return {"state": UploadState.TRANSFERRING, "received": received}
        case BytesLost(stored=stored):
            lost: Columns = {"received": stored, "phase": TRANSFER, "percent": None}
            return {"state": UploadState.TRANSFERRING, **lost}
        case FileReceived():
            return _received(event)
        case UploadQueued():
            return {"state": UploadState.QUEUED}
        case AttemptStarted(number=number):
            begun: Columns = {"attempt": number, "retry_at": None, **_AT_REST}
            return {"state": UploadState.PROCESSING, **begun}
        case AttemptFailed():
            return _attempt_failed(event)
        case AttemptAbandoned():
            return {"state": UploadState.QUEUED, **_AT_REST}
        case AttemptSucceeded():
            return _succeeded(event)
        case RetryRequested():
            return {"state": UploadState.RECEIVED, "retry_at": None, "ended_at": None}
        case UploadCompleted():
            return {"state": UploadState.COMPLETED, "ended_at": event.at}
        case UploadFailed(step=step, message=message):
            return {**_error(step, message), "state": UploadState.FAILED, "ended_at": event.at}
        case UploadQuarantined(step=step, reason=reason):
            held: Columns = {"state": UploadState.QUARANTINED, "ended_at": event.at}
            return {**_error(step, reason), **held}
        case UploadReleased():
            return {"error": None, "error_step": None}
        case UploadCancelled():
            return {**_ENDED, "state": UploadState.CANCELLED, "ended_at": event.at}
        case UploadExpired():
            return {**_ENDED, "state": UploadState.EXPIRED, "ended_at": event.at}
        case UploadErased():
            return {"state": UploadState.ERASED, **_tombstone()}
        case _:
            assert_never(event)


_AT_REST: Columns = MappingProxyType({"phase": None, "percent": None})
_ENDED: Columns = MappingProxyType({**_AT_REST, "retry_at": None})


def _tombstone() -> Columns:
    return {
        **_ENDED,
        "path": "",
        "media_type": None,
        "checksum": None,
        "metadata": {},
        "results": {},
        "artifacts": {},
        "blob": None,
        "error": None,
        "error_step": None,
    }


def _error(step: str, message: str) -> Columns:
    return {**_ENDED, "error": strip_nul(message), "error_step": strip_nul(step)}


def _progressed(event: FileProgressed) -> Columns:
    progress: Columns = {"phase": strip_nul(event.phase), "percent": event.percent}
    if event.phase == TRANSFER:
        return {**progress, "state": UploadState.TRANSFERRING, "received": event.done}
    return progress


def _registered(event: UploadRegistered) -> Columns:
    return {
        "batch": event.batch,
        "owner": event.owner,
        "path": strip_nul(event.path),
        "size": event.size,
        "media_type": event.media_type,
        "checksum": event.checksum,
        "metadata": strip_nul_json(event.metadata),
        "pipeline": event.pipeline,
        "registered_at": event.at,
    }


def _rejected(event: UploadRejected) -> Columns:
    return {
        "batch": event.batch,
        "owner": event.owner,
        "path": strip_nul(event.path),
        "size": event.size,
        "media_type": event.media_type,
        "state": UploadState.REJECTED,
        "error": strip_nul(event.message),
        "registered_at": event.at,
        "ended_at": event.at,
    }


def _received(event: FileReceived) -> Columns:
    return {
        "state": UploadState.RECEIVED,
        "size": event.size,
        "received": event.size,
        "blob": event.blob,
        "phase": TRANSFER,
        "percent": 100.0,
        "received_at": event.at,
    }


def _attempt_failed(event: AttemptFailed) -> Columns:
    waits: Columns = {"state": UploadState.RETRY_SCHEDULED, "retry_at": event.retry_at}
    return {**_error(event.step, event.message), **waits}


def _succeeded(event: AttemptSucceeded) -> Columns:
    return {
        **_ENDED,
        "error": None,
        "error_step": None,
        "results": strip_nul_json(event.results),
        "artifacts": strip_nul_json(event.artifacts),
    }


def attempt_columns(event: UploadEvent) -> tuple[int, Columns] | None:
    """Return the number of the attempt and its columns; None for an event of no attempt."""
    match event:
        case FileProgressed(phase=phase):
            if phase == TRANSFER:
                return None
            return event.attempt, {"step": strip_nul(phase), "percent": event.percent}
        case AttemptStarted():
            return event.number, {"worker": strip_nul(event.worker), "started_at": event.at}
        case AttemptSucceeded():
            return event.number, _attempt_succeeded(event)
        case AttemptFailed():
            return event.number, _attempt_columns_of_failure(event)
        case AttemptAbandoned():
            return event.number, _attempt_abandoned(event)
        case (
            UploadRegistered()
            | UploadRejected()
            | SizeDeclared()
            | TransferInterrupted()
            | BytesLost()
            | FileReceived()
            | UploadQueued()
            | UploadCompleted()
            | UploadFailed()
            | UploadQuarantined()
            | RetryRequested()
            | UploadReleased()
            | UploadCancelled()
            | UploadExpired()
            | UploadErased()
        ):
            return None
        case _:
            assert_never(event)


def _attempt_succeeded(event: AttemptSucceeded) -> Columns:
    return {
        "state": "succeeded",
        "step": None,
        "percent": None,
        "ended_at": event.at,
        "duration": event.duration,
    }


def _attempt_columns_of_failure(event: AttemptFailed) -> Columns:
    """Return the error unchanged; later events of the upload do not touch it."""
    return {
        "state": "failed",
        "step": strip_nul(event.step),
        "error_type": strip_nul(event.error_type),
        "message": strip_nul(event.message),
        "permanent": event.permanent,
        "retry_at": event.retry_at,
        "ended_at": event.at,
        "duration": event.duration,
    }


def _attempt_abandoned(event: AttemptAbandoned) -> Columns:
    """Leave `step` as it is: the last one that the worker reported."""
    return {"state": "abandoned", "message": strip_nul(event.reason), "ended_at": event.at}
