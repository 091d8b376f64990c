"""The log: the one place where facts are kept."""

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
    """Whose a stream is, by its first event; `batch` is that of an upload."""

    owner: str
    batch: UUID | None = None


class EventLog(Protocol):
    """Facts in one total order, and the aggregates that follow from them."""

    @property
    def id_secret(self) -> bytes:
        """What keys the derived ids of this database (`domain.ids`); the same in every process."""

    async def append(self, append: Append) -> AppendResult:
        """Records all writes of the append, or none; durable when this returns.

        Positions rise in the order of commits, so that a reader never passes a gap.

        Raises Conflict if a stream is not at its expected version or a condition no longer holds,
        AlreadyHandled and IdempotencyKeyReused for a known command id, Unavailable if the log
        cannot be reached (and it is certain that nothing was recorded), OutcomeUnknown if the log
        was lost during the append and did not come back in time to be asked.
        """

    async def upload(self, id: UUID) -> Upload:
        """The upload as of now, or a moment ago: an append at its version finds out.

        Raises NotFound, Unavailable.
        """

    async def batch(self, id: UUID) -> Batch:
        """The batch, likewise."""

    async def webhook(self, id: UUID) -> Webhook:
        """The webhook, likewise; also one that was removed."""

    def remembered(self, id: UUID) -> Upload | Batch | Webhook | None:
        """Return the cached aggregate of this stream, if any, without a query; it may be stale."""

    async def origin(self, id: UUID) -> Origin | None:
        """Whose the stream is; None if there is none. One statement in either case."""

    def forget(self, *ids: UUID) -> None:
        """Drops what is remembered of these streams, so that the next load reads the log."""

    async def versions(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        """The current versions of those of these streams that exist."""

    async def stream(
        self, id: UUID, *, after: int = 0, upto_position: int | None = None, limit: int = 10_000
    ) -> Sequence[RecordedEvent]:
        """Events of one stream with versions beyond `after`, oldest first."""

    async def read(
        self, after: int, *, limit: int, topics: Sequence[str] | None = None
    ) -> Sequence[RecordedEvent]:
        """Events with positions beyond `after`, in order; at most `limit`."""

    async def head(self) -> int:
        """The position of the last event; 0 for an empty log."""

    async def position_at(self, moment: datetime) -> int:
        """The position of the last event recorded up to this moment; 0 if there is none."""


class Wakeups(Protocol):
    """Says when it is worth reading the log again."""

    async def wait(self, after: int) -> None:
        """Returns soon after an event beyond position `after` may exist.

        It may return early, and returns after about a second in any case: callers read
        and come back.
        """
