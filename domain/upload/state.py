"""States of an upload."""

from __future__ import annotations

from enum import StrEnum


class UploadState(StrEnum):
    REGISTERED = "registered"
    TRANSFERRING = "transferring"
    RECEIVED = "received"
    QUEUED = "queued"
    PROCESSING = "processing"
    RETRY_SCHEDULED = "retry_scheduled"
    COMPLETED = "completed"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    ERASED = "erased"

    @property
    def ended(self) -> bool:
        """Return whether nothing more happens without a command."""
        return self in ENDED


ENDED = frozenset(
    {
        UploadState.COMPLETED,
        UploadState.FAILED,
        UploadState.QUARANTINED,
        UploadState.REJECTED,
        UploadState.CANCELLED,
        UploadState.EXPIRED,
        UploadState.ERASED,
    }
)
INCOMING = (UploadState.REGISTERED, UploadState.TRANSFERRING)
ARRIVED = frozenset(
    {
        UploadState.RECEIVED,
        UploadState.QUEUED,
        UploadState.PROCESSING,
        UploadState.RETRY_SCHEDULED,
        UploadState.COMPLETED,
        UploadState.FAILED,
        UploadState.QUARANTINED,
    }
)
"""States of uploads of which every byte has arrived."""
GONE = frozenset(
    {UploadState.REJECTED, UploadState.CANCELLED, UploadState.EXPIRED, UploadState.ERASED}
)
"""States of uploads whose bytes are not needed any more."""
