"""The completion report of a batch: what became of every file, and why some came to nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from application.views import BatchView
from domain.upload.state import UploadState

FAILURES = (UploadState.FAILED, UploadState.QUARANTINED, UploadState.REJECTED)
"""States of files that somebody has to look after."""

MOST_REASONS = 100


class ReportRow(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one file; `error` is the last one, as it was, in the step `step`."""

    id: UUID
    path: str
    state: str
    size: int | None
    media_type: str | None
    attempts: int
    step: str | None
    error: str | None
    registered_at: datetime
    received_at: datetime | None
    ended_at: datetime | None


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Failures that are alike: their messages are, but for the path and for numbers.

    `example` is the message of one of them, `path` its file.
    """

    state: str
    step: str | None
    reason: str
    uploads: int
    example: str
    path: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A batch at one moment, `position` of the log; `files` can be gone through once.

    `reasons` has the most frequent first, `MOST_REASONS` at most.
    """

    batch: BatchView
    position: int
    reasons: list[Reason]
    files: AsyncIterator[ReportRow]


class Reports(Protocol):
    """Reports, each told as of one moment, however long that takes."""

    def report(
        self, batch: UUID, *, owner: str | None, only_failed: bool = False
    ) -> AbstractAsyncContextManager[Report]:
        """The files in the order of their paths, or only those of the states `FAILURES`.

        Little of it is in memory at any time. Raises NotFound, Unavailable.
        """
