"""What an event of an upload assigns in its row.

`error` and `error_step` tell the last failure as it was, until an attempt succeeds; `retry_at`
is set only while a retry is waited for; `phase` and `percent` are those of the work going on.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import assert_never

from application.projection.columns import Columns, text, tree
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


def upload_columns(event: UploadEvent) -> Columns:
    """States mirror `Upload.evolve`."""
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
    return {**_ENDED, "error": text(message), "error_step": text(step)}


def _progressed(event: FileProgressed) -> Columns:
    progress: Columns = {"phase": text(event.phase), "percent": event.percent}
    if event.phase == TRANSFER:
        return {**progress, "state": UploadState.TRANSFERRING, "received": event.done}
    return progress


def _registered(event: UploadRegistered) -> Columns:
    return {
        "batch": event.batch,
        "owner": event.owner,
        "path": text(event.path),
        "size": event.size,
        "media_type": event.media_type,
        "checksum": event.checksum,
        "metadata": tree(event.metadata),
        "pipeline": event.pipeline,
        "registered_at": event.at,
    }


def _rejected(event: UploadRejected) -> Columns:
    return {
        "batch": event.batch,
        "owner": event.owner,
        "path": text(event.path),
        "size": event.size,
        "media_type": event.media_type,
        "state": UploadState.REJECTED,
        "error": text(event.message),
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
        "results": tree(event.results),
        "artifacts": tree(event.artifacts),
    }
