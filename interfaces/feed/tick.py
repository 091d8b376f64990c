"""One tick's changes, cut to what each client follows: encoded once, joined once per audience."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from application.ports.feed import Changes, Selection
from application.views import AttemptView, BatchView, UploadView
from interfaces.feed.encoding import Encoding, Row
from interfaces.feed.place import Place


class Tick:
    """Rows of many owners, and for each client the few it may see and follows.

    Clients that follow the same share the joined bytes.
    """

    def __init__(self, changes: Changes, encoding: Encoding) -> None:
        self.changes = changes
        self._encoding = encoding
        self._encoded: dict[int, bytes] = {}
        self._joined: dict[tuple[Selection, int, int], bytes | None] = {}
        self._batches: dict[UUID, BatchView] = {row.id: row for row in changes.batches}
        self._uploads: dict[UUID, list[UploadView]] = defaultdict(list)
        self._attempts: dict[UUID, list[AttemptView]] = defaultdict(list)
        home = {}
        for upload in changes.uploads:
            home[upload.id] = upload.batch
            self._uploads[upload.batch].append(upload)
        for attempt in changes.attempts:
            self._attempts[home[attempt.upload]].append(attempt)

    def rows_for(self, selection: Selection, place: Place) -> bytes | None:
        """The selected rows beyond the client's place, joined; None if there are none."""
        after = max(place.position, self.changes.after)
        key = (selection, after, max(place.whole, self.changes.since))
        if key not in self._joined:
            self._joined[key] = self._join(*key)
        return self._joined[key]

    def _join(self, selection: Selection, after: int, since: int) -> bytes | None:
        lists = (
            self._encode(self._batches_of(selection), after),
            self._encode(self._of(self._uploads, selection), after),
            self._encode(self._of(self._attempts, selection), since),
        )
        return self._encoding.rows(*lists) if any(lists) else None

    def _batches_of(self, selection: Selection) -> Iterable[BatchView]:
        wanted = self._batches if selection.batches is None else selection.batches
        for id in wanted:
            row = self._batches.get(id)
            if row is not None and selection.owner in (None, row.owner):
                yield row

    def _of(self, rows: Mapping[UUID, Sequence[Row]], selection: Selection) -> Iterable[Row]:
        for batch in selection.uploads_of:
            if self._is_owned(batch, selection.owner):
                yield from rows.get(batch, ())

    def _is_owned(self, batch: UUID, owner: str | None) -> bool:
        """Whether uploads of this batch may be seen: a batch and its uploads have one owner."""
        uploads: Sequence[UploadView] = self._uploads.get(batch, ())
        return bool(uploads) and owner in (None, uploads[0].owner)

    def _encode(self, rows: Iterable[Row], position: int) -> list[bytes]:
        return [self._once(row) for row in rows if row.position > position]

    def _once(self, row: Row) -> bytes:
        known = self._encoded.get(id(row))
        if known is None:
            known = self._encoded[id(row)] = self._encoding.row(row)
        return known
