"""Where a batch stands, and how that follows from the set of its uploads."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

from domain.upload.state import ARRIVED, ENDED, UploadState

Counts: TypeAlias = Mapping[UploadState, int]
"""How many uploads are in each state; a state without uploads is absent."""


MIN_SAMPLE = 20
"""Uploads of which a share says something."""


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
    """How many files are there, every byte of them."""
    return sum(count for state, count in counts.items() if state in ARRIVED)


def all_ended(counts: Counts) -> bool:
    """Whether no upload of the set has anything left to happen to it."""
    return all(state in ENDED for state, count in counts.items() if count)


def outcome_of(counts: Counts, pending: Outcome | None) -> Outcome:
    """The verdict on a set of ended uploads; `pending` is set when the batch was called off."""
    if pending is not None:
        return pending
    uploads = sum(counts.values())
    completed = counts.get(UploadState.COMPLETED, 0) + counts.get(UploadState.ERASED, 0)
    if completed == uploads:
        return Outcome.SUCCEEDED
    return Outcome.COMPLETED_WITH_FAILURES if completed else Outcome.FAILED


def failed_count(counts: Counts) -> int:
    """How many uploads a worker gave up on, or found dangerous."""
    return counts.get(UploadState.FAILED, 0) + counts.get(UploadState.QUARANTINED, 0)


def exceeds_failure_threshold(
    counts: Counts, threshold: float, *, acknowledged: int, sealed: bool
) -> bool:
    """Whether more than the share `threshold` of the judged uploads failed.

    Few are judged as if there were `FEWEST`, so that one early failure says nothing, unless a
    sealed batch has fewer in all. `acknowledged` failures do not count, on neither side.
    """
    failed = failed_count(counts) - acknowledged
    judged = failed + counts.get(UploadState.COMPLETED, 0)
    fewest = min(MIN_SAMPLE, sum(counts.values())) if sealed else MIN_SAMPLE
    return failed > threshold * max(judged, fewest)


def percent_of(
    counts: Counts, bytes_received: int, bytes_total: int, *, called_off: bool = False
) -> float:
    """How far the set is, 0 to 100: half for bytes that arrived, half for uploads that ended.

    In a batch that was `called_off`, uploads that ended by that have not got anywhere.
    """
    uploads = sum(counts.values())
    if not uploads:
        return 0.0
    undone = _CALLED_OFF if called_off else frozenset()
    ended = sum(count for state, count in counts.items() if state in ENDED - undone) / uploads
    arrived = min(1.0, bytes_received / bytes_total) if bytes_total else ended
    return 100.0 if ended == 1.0 else round(min(99.9, 50 * arrived + 50 * ended), 1)
