"""The event log and the aggregates that are folded from it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from application.append import Append, AppendResult, RecordedEvent
from domain.batch.aggregate import Batch
from domain.upload.aggregate import Upload
from domain.webhook.aggregate import Webhook


class Origin(msgspec.Struct, frozen=True):
    """Owner and batch of a stream, from its first event; `batch` is None for other streams."""

    owner: str
    batch: UUID | None = None


class EventLog(Protocol):
    """Events in one total order, and the aggregates that are folded from them."""

    @property
    def id_secret(self) -> bytes:
        """Secret of the derived ids of this database (`domain.ids`); the same in every process."""

    async def append(self, append: Append) -> AppendResult:
        """Append all events or none; they are durable when this returns.

        Positions rise in the order of commits, so that a reader never passes a gap.

        Raises Conflict if a stream is not at its expected version or a condition no longer holds,
        AlreadyHandled and IdempotencyKeyReused for a known command id, Unavailable if the log
        cannot be reached (and it is certain that nothing was recorded), OutcomeUnknown if the log
        was lost during the append and did not come back in time to be asked.
        """

    async def upload(self, id: UUID) -> Upload:
        """Return the upload, possibly slightly stale: an append at its version detects that.

        Raises NotFound, Unavailable.
        """

    async def batch(self, id: UUID) -> Batch:
        """Return the batch, as `upload` does."""

    async def webhook(self, id: UUID) -> Webhook:
        """Return the webhook, as `upload` does; also a removed one."""

    def remembered(self, id: UUID) -> Upload | Batch | Webhook | None:
        """Return the cached aggregate of this stream, if any, without a query; it may be stale."""

    async def origin(self, id: UUID) -> Origin | None:
        """Return the origin of the stream, or None. One statement in either case."""

    def forget(self, *ids: UUID) -> None:
        """Drop the cached aggregates of these streams, so that the next load reads the log."""

    async def versions(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        """Return the current versions of these streams, without absent ones."""

    async def stream(
        self, id: UUID, *, after: int = 0, upto_position: int | None = None, limit: int = 10_000
    ) -> Sequence[RecordedEvent]:
        """Return events of one stream with versions beyond `after`, oldest first."""

    async def read(
        self, after: int, *, limit: int, topics: Sequence[str] | None = None
    ) -> Sequence[RecordedEvent]:
        """Return events with positions beyond `after`, in order; at most `limit`."""

    async def head(self) -> int:
        """Return the position of the last event; 0 for an empty log."""

    async def position_at(self, moment: datetime) -> int:
        """Return the position of the last event recorded up to this moment; 0 if there is none."""


class Wakeups(Protocol):
    """Notifications that the log may have new events."""

    async def wait(self, after: int) -> None:
        """Return soon after an event beyond position `after` may exist.

        May return early, and returns after about a second in any case: callers poll.
        """
