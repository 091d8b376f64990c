"""What the feed needs of the read model: the rows that changed since a position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import msgspec

from application.views import AttemptView, BatchView, UploadView


class Selection(msgspec.Struct, frozen=True):
    """Which rows somebody follows, and may see.

    `batches` are the batch rows (None: every batch of the owner), `uploads_of` the batches whose
    uploads and attempts are followed too. `owner` None sees every owner's.
    """

    owner: str | None
    batches: frozenset[UUID] | None
    uploads_of: frozenset[UUID] = frozenset()


class Changes(msgspec.Struct, frozen=True):
    """The selected rows with positions in (`after`, `to`], of one consistent moment.

    Whoever has seen everything up to `after` and takes these rows has seen everything up to `to`.
    `head` is the position the read model reflects at that moment; `more` says that `to` stops
    short of it because of the limit. `epoch` changes when the read model was rebuilt.

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
    """The read model, asked what is new in it."""

    async def changes(self, selection: Selection, *, since: int, after: int, limit: int) -> Changes:
        """What changed beyond `after`, in the order of positions.

        At most `limit` batches and `limit` uploads, and ten times as many attempts (unless one
        upload alone has more). Raises Unavailable when the database cannot be reached now.
        """

    async def reach(self) -> tuple[int, int]:
        """Return the position that rows reflect, and that of the end of the log."""

    async def known(self, ids: frozenset[UUID], *, owner: str | None) -> frozenset[UUID]:
        """Those of these batches that exist and may be seen. Raises Unavailable."""
