"""What an event of an upload assigns in the row of one of its attempts."""

from __future__ import annotations

from typing import assert_never

from application.projection.columns import Columns, text
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


def attempt_columns(event: UploadEvent) -> tuple[int, Columns] | None:
    """The number of the attempt and its columns; None for an event of no attempt."""
    match event:
        case FileProgressed(phase=phase):
            if phase == TRANSFER:
                return None
            return event.attempt, {"step": text(phase), "percent": event.percent}
        case AttemptStarted():
            return event.number, {"worker": text(event.worker), "started_at": event.at}
        case AttemptSucceeded():
            return event.number, _succeeded(event)
        case AttemptFailed():
            return event.number, _failed(event)
        case AttemptAbandoned():
            return event.number, _abandoned(event)
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


def _succeeded(event: AttemptSucceeded) -> Columns:
    return {
        "state": "succeeded",
        "step": None,
        "percent": None,
        "ended_at": event.at,
        "duration": event.duration,
    }


def _failed(event: AttemptFailed) -> Columns:
    """The error as it was: later events of the upload do not touch it."""
    return {
        "state": "failed",
        "step": text(event.step),
        "error_type": text(event.error_type),
        "message": text(event.message),
        "permanent": event.permanent,
        "retry_at": event.retry_at,
        "ended_at": event.at,
        "duration": event.duration,
    }


def _abandoned(event: AttemptAbandoned) -> Columns:
    """`step` stays: it says where the worker was last heard of."""
    return {"state": "abandoned", "message": text(event.reason), "ended_at": event.at}
