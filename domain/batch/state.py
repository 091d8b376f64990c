"""States of a batch, and what follows from the counts of its uploads."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

from domain.upload.state import ARRIVED, ENDED, UploadState

Counts: TypeAlias = Mapping[UploadState, int]
"""Number of uploads by state; a state without uploads is absent."""


MIN_SAMPLE = 20
"""Number of uploads below which a share of failures is not significant."""


class BatchState(StrEnum):
    OPEN = "open"
    SEALED = "sealed"
    CANCELLING = "cancelling"
    COMPLETED = "completed"


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_CALLED_OFF = frozenset({UploadState.CANCELLED, UploadState.EXPIRED})


def arrived_count(counts: Counts) -> int:
    """Return the number of uploads of which every byte has arrived."""
    return sum(count for state, count in counts.items() if state in ARRIVED)


def all_ended(counts: Counts) -> bool:
    """Return whether every upload has ended."""
    return all(state in ENDED for state, count in counts.items() if count)


def outcome_of(counts: Counts, pending: Outcome | None) -> Outcome:
    """Return the outcome of ended uploads; `pending` is that of a cancelled or expired batch."""
    if pending is not None:
        return pending
    uploads = sum(counts.values())
    completed = counts.get(UploadState.COMPLETED, 0) + counts.get(UploadState.ERASED, 0)
    if completed == uploads:
        return Outcome.SUCCEEDED
    return Outcome.COMPLETED_WITH_FAILURES if completed else Outcome.FAILED


def failed_count(counts: Counts) -> int:
    """Return the number of failed and quarantined uploads."""
    return counts.get(UploadState.FAILED, 0) + counts.get(UploadState.QUARANTINED, 0)


def exceeds_failure_threshold(
    counts: Counts, threshold: float, *, acknowledged: int, sealed: bool
) -> bool:
    """Return whether more than the share `threshold` of the processed uploads failed.

    Fewer than `MIN_SAMPLE` count as that many, so that one early failure is not decisive, unless a
    sealed batch has fewer in all. `acknowledged` failures count neither as failed nor processed.
    """
    failed = failed_count(counts) - acknowledged
    processed = failed + counts.get(UploadState.COMPLETED, 0)
    sample = min(MIN_SAMPLE, sum(counts.values())) if sealed else MIN_SAMPLE
    return failed > threshold * max(processed, sample)


def percent_of(
    counts: Counts, bytes_received: int, bytes_total: int, *, called_off: bool = False
) -> float:
    """Return the progress, 0 to 100: half for received bytes, half for ended uploads.

    In a batch that was `called_off`, cancelled and expired uploads do not count as ended.
    """
    uploads = sum(counts.values())
    if not uploads:
        return 0.0
    undone = _CALLED_OFF if called_off else frozenset()
    ended = sum(count for state, count in counts.items() if state in ENDED - undone) / uploads
    arrived = min(1.0, bytes_received / bytes_total) if bytes_total else ended
    return 100.0 if ended == 1.0 else round(min(99.9, 50 * arrived + 50 * ended), 1)
