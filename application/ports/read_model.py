"""The read model: what was projected from the log, asked for by owner.

Everywhere `owner` is the tenant whose rows may be seen; None sees every owner's.
What belongs to somebody else does not exist: NotFound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.reporting import Reports
from application.views import AttemptView, BatchView, UploadView

Row = TypeVar("Row")


class Page(msgspec.Struct, Generic[Row], frozen=True):
    """Some rows, and the opaque cursor of the next page, None on the last one.

    `position` is the place in the log these rows reflect.
    """

    items: list[Row]
    next: str | None
    position: int


class Queries(Reports, Protocol):
    """Questions to the read model, each answered from one consistent moment of it."""

    async def position(self) -> int:
        """The position in the log that the read model reflects."""

    async def wait_for(self, position: int, *, timeout: float) -> None:
        """Returns once the read model reflects `position`; raises TimeoutError after seconds."""

    async def batch(self, id: UUID, *, owner: str | None) -> BatchView:
        """Raises NotFound."""

    async def batches(
        self,
        *,
        owner: str | None,
        state: str | None = None,
        label: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[BatchView]:
        """Newest first. Raises BadCursor."""

    async def upload(self, id: UUID, *, owner: str | None) -> UploadView:
        """Raises NotFound."""

    async def uploads(
        self,
        batch: UUID,
        *,
        owner: str | None,
        state: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[UploadView]:
        """The uploads of a batch in the order of their paths. Raises NotFound, BadCursor."""

    async def attempts(self, upload: UUID, *, owner: str | None) -> list[AttemptView]:
        """Every attempt, first to last. Raises NotFound."""


class History(Protocol):
    """Recorded events, as they are in the log."""

    async def of_upload(
        self, id: UUID, *, owner: str | None, after: int = 0, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        """Events of one upload beyond position `after`. Raises NotFound."""

    async def of_upload_before(
        self, id: UUID, before: int, *, owner: str | None, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        """The last events of one upload before a position, oldest first. Raises NotFound."""

    async def of_batch(
        self, id: UUID, *, owner: str | None, after: int = 0, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        """Events of a batch and of all its uploads, in total order. Raises NotFound."""

    async def of_batch_before(
        self, id: UUID, before: int, *, owner: str | None, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        """The last ones of these before a position, oldest first. Raises NotFound."""

    async def of_everything(
        self, *, owner: str | None, after: int = 0, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        """All events of an owner, or of all owners, in total order."""


class BadCursor(ValueError):
    """The cursor was not given out by this query."""
