"""Port of the orchestrator's rounds: tables, job queue and log in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from application.append import Append, AppendResult
from application.errors import ApplicationError
from application.orchestrator import RoundConsequences, UploadToCancel
from application.tracked_batches import (
    BatchCounts,
    TrackedBatch,
    TrackedUpload,
    TrackingChanges,
)


class BatchSelection(msgspec.Struct, frozen=True):
    """Batch to count; whether a count is due, and whether its failed uploads are retried."""

    tracked: TrackedBatch
    is_due: bool
    is_retrying: bool


class RoundSelection(msgspec.Struct, frozen=True, kw_only=True):
    """Uploads and batches that a round decides on, as of the rows it has saved.

    `ready` is in the order in which uploads are enqueued: in turn among owners, then by priority,
    then in turn among batches, within the windows of uploads in flight. `workers` is the number of
    registered workers; `has_batch_retries` is whether some batch has failed uploads to retry.
    """

    to_cancel: Sequence[UploadToCancel]
    ready: Sequence[TrackedUpload]
    to_count: Sequence[BatchSelection]
    has_batch_retries: bool
    workers: int


class Round(Protocol):
    """Open transaction of one round. Its writes are visible to others after its end, all or none.

    Methods are called in the order in which they are listed here.
    """

    async def load(
        self, uploads: Iterable[UUID], batches: Iterable[UUID]
    ) -> tuple[Mapping[UUID, TrackedUpload], Mapping[UUID, TrackedBatch]]:
        """Return the known ones of these uploads and batches, and the batches of the uploads."""

    async def save_and_select(
        self, changes: TrackingChanges, *, through: int, at: datetime
    ) -> RoundSelection:
        """Save what the events up to position `through` have changed, and select what follows.

        The failed uploads of the batches in `changes.batch_retries` are retried from now on.
        """

    async def next_failed_uploads(self) -> Mapping[UUID, Sequence[TrackedUpload]]:
        """Return the next failed uploads of each retried batch in the order of ids, and move on.

        Going by the ids, an upload is met once for each request: one that fails again stays failed.
        """

    async def find_lost(self) -> Sequence[TrackedUpload]:
        """Delete silent workers and their jobs; return the uploads that no job carries."""

    async def find_idle(self, at: datetime) -> Sequence[TrackedBatch]:
        """Return open batches that expire: without an event for long, and without work."""

    async def count_uploads(self, batches: Sequence[UUID]) -> Mapping[UUID, BatchCounts]:
        """Count the uploads of each batch by state, and their bytes."""

    async def append(self, appends: Sequence[Append]) -> Sequence[AppendResult | ApplicationError]:
        """Append each, or return why it was refused. Holds the lock of the log until the end."""

    async def save(self, consequences: RoundConsequences) -> datetime | None:
        """Defer the jobs and save the rows; return when the next count is due, None for never."""


class Rounds(Protocol):
    """Tables of the orchestrator, in the session of the leader.

    Every method raises what a lost session raises.
    """

    async def load_position(self) -> int:
        """Return the position up to which the last leader has followed the log."""

    def begin(self, position: int) -> AbstractAsyncContextManager[Round]:
        """Begin a round after `position`; it commits at the end of the context, unless that raises.

        Raises LeadershipLost if the saved position is another one: another process leads.
        """
