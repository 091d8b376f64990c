"""Ports of the read model: queries, feed changes, history, and lookups of the sweeper.

`owner` is always the tenant whose rows are visible; None sees the rows of every owner. Rows of
other owners do not exist for the caller: NotFound.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.projection import FoldedChanges
from application.views import AttemptView, BatchView, Reports, UploadView


class ProjectedRows(Protocol):
    """Rows of the read model as the projector writes them, with the position that they reflect."""

    async def position(self) -> int:
        """Return the position that the rows reflect."""

    async def write(self, after: int, folded: FoldedChanges) -> bool:
        """Write the changes and their position, all or none, if the rows reflect `after`.

        Returns False otherwise: another process projects. Readers are notified afterwards.
        """


class FeedFilter(msgspec.Struct, frozen=True):
    """Rows that a feed client subscribed to and may see.

    `batches` are the batch rows (None: every batch of the owner), `uploads_of` the batches whose
    uploads and attempts are followed too. `owner` None sees every owner's.
    """

    owner: str | None
    batches: frozenset[UUID] | None
    uploads_of: frozenset[UUID] = frozenset()


class ChangePage(msgspec.Struct, frozen=True):
    """The selected rows with positions in (`after`, `to`], of one consistent moment.

    A client that has every change up to `after` and applies these rows has every change up to
    `to`. `head` is the position that the read model reflects at that moment; `more` is true if `to`
    stops before it because of the limit. `epoch` changes when the read model was rebuilt.

    The attempts are those beyond `since` of the uploads beside them. They come with their upload,
    never alone; so where a page stopped short, an attempt may be older than the page's upload, and
    older than `after`. Hence `since`: the end of the last page that did not stop short.
    """

    epoch: str
    since: int
    after: int
    to: int
    head: int
    more: bool
    batches: Sequence[BatchView] = ()
    uploads: Sequence[UploadView] = ()
    attempts: Sequence[AttemptView] = ()


class FeedSource(Protocol):
    """Changes of the read model, for the feed."""

    async def changes(
        self, selection: FeedFilter, *, since: int, after: int, limit: int
    ) -> ChangePage:
        """Return the rows that changed beyond `after`, in the order of positions.

        At most `limit` batches and `limit` uploads, and ten times as many attempts (unless one
        upload alone has more). Raises Unavailable when the database cannot be reached now.
        """

    async def reach(self) -> tuple[int, int]:
        """Return the position that rows reflect, and that of the end of the log."""

    async def known(self, ids: frozenset[UUID], *, owner: str | None) -> frozenset[UUID]:
        """Return the batches among these that exist and are visible. Raises Unavailable."""


Row = TypeVar("Row")


class Page(msgspec.Struct, Generic[Row], frozen=True):
    """Page of rows with the opaque cursor of the next one, None on the last page.

    `position` is the log position that the rows reflect.
    """

    items: list[Row]
    next: str | None
    position: int


class Queries(Reports, Protocol):
    """Queries of the read model, each from one snapshot."""

    async def position(self) -> int:
        """Return the log position that the read model reflects."""

    async def wait_for(self, position: int, *, timeout: float) -> None:
        """Return once the read model reflects `position`. Raises TimeoutError after `timeout`."""

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
        """The last of these events before a position, oldest first. Raises NotFound."""

    async def of_everything(
        self, *, owner: str | None, after: int = 0, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        """All events of an owner, or of all owners, in total order."""


class BadCursor(ValueError):
    """The cursor is not one of this query."""


class IdleUpload(msgspec.Struct, frozen=True):
    """Unfinished upload without recent events; `version` is that of its last event."""

    upload: UUID
    version: int


class UploadStatus(msgspec.Struct, frozen=True):
    """Recent state of an upload, and the blob with its bytes once they are complete."""

    state: str
    blob: str | None


class UploadStatusLookup(Protocol):
    """Recent states of uploads: sufficient to select candidates, never to delete bytes."""

    async def idle(self, before: datetime, limit: int) -> Sequence[IdleUpload]:
        """Return unfinished uploads whose last event is older than `before`; at most `limit`."""

    async def of(self, uploads: Sequence[UUID]) -> dict[UUID, UploadStatus]:
        """Return the states of these uploads, without unknown ones."""
