"""The read model in memory: rows of the projector, queries, changes of the feed, and usage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from application.errors import NotFound
from application.ports.event_log import Wakeups
from application.ports.limits import StorageUsage
from application.ports.read_model import (
    ChangePage,
    FeedFilter,
    IdleUpload,
    Page,
    UploadStatus,
)
from application.projection import FoldedChanges
from application.views import (
    DERIVED,
    AttemptView,
    BatchView,
    Report,
    UploadView,
    show_activity,
)
from domain.upload.state import GONE
from infrastructure.read_model.feed import _Asked, _page
from infrastructure.read_model.queries import AfterBatch, AfterUpload, from_cursor, to_cursor
from infrastructure.read_model.tables import NAME
from tests.memory.database import Client, MemoryDatabase, SessionClient

VIEWS: dict[str, type[msgspec.Struct]] = {
    "batches": BatchView,
    "uploads": UploadView,
    "attempts": AttemptView,
}
View = TypeVar("View", BatchView, UploadView, AttemptView)
_SETTLE = 0.005  # seconds between two looks at a position that was announced


class MemoryRows:
    """The port `ProjectedRows` in the session of the leader. Raises psycopg.OperationalError."""

    def __init__(self, client: SessionClient) -> None:
        self._client = client
        self._database = client.database

    async def position(self) -> int:
        return await self._client.call("rows", lambda: self._database.positions.get(NAME, 0))

    async def write(self, after: int, folded: FoldedChanges) -> bool:
        return await self._client.call("project", lambda: self._write(after, folded))

    def _write(self, after: int, folded: FoldedChanges) -> bool:
        database = self._database
        if database.positions.get(NAME, 0) != after:
            return False
        apply_changes(database.read_model, folded)
        database.positions[NAME] = folded.position
        database.notify("uptrail_read_model", str(folded.position))
        return True


def apply_changes(tables: dict[str, dict[Any, Any]], folded: FoldedChanges) -> None:
    """Insert and update rows, which share nothing with the changes. Raises KeyError for a row
    that begins twice; a row that is to be updated and missing is left out."""
    for name, changes in folded.tables.items():
        rows, view = tables[name], VIEWS[name]
        for key, columns in changes.created.items():
            if key in rows:
                raise KeyError(f"{name} has the row {key} already")
            rows[key] = _copied(view, view(**columns))
        for key, columns in changes.updated.items():
            if (row := rows.get(key)) is not None:
                rows[key] = _copied(view, msgspec.structs.replace(row, **columns))


def _copied(view: type[msgspec.Struct], row: msgspec.Struct) -> Any:
    return msgspec.json.decode(msgspec.json.encode(row), type=view)


class MemoryQueries:
    """The port `Queries` in memory, without reports. Every method raises Unavailable."""

    def __init__(self, client: Client, wakeups: Wakeups) -> None:
        self._client = client
        self._database = client.database
        self._wakeups = wakeups

    async def position(self) -> int:
        return await self._client.call("position", lambda: self._position)

    async def wait_for(self, position: int, *, timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while await self.position() < position:
                await self._wakeups.wait(position - 1)
                await asyncio.sleep(_SETTLE)

    async def batch(self, id: UUID, *, owner: str | None) -> BatchView:
        rows = await self._client.call("batch", lambda: self._of("batches", id, owner))
        return show_activity(only(BatchView, rows, f"batch {id}"), self._database.now())

    async def batches(
        self,
        *,
        owner: str | None,
        state: str | None = None,
        label: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[BatchView]:
        after = None if cursor is None else from_cursor(cursor, AfterBatch)

        def found() -> tuple[list[BatchView], int]:
            rows = [
                row
                for row in self._rows(BatchView, "batches")
                if owner in (None, row.owner)
                and state in (None, row.state)
                and label in (None, row.label)
                and (after is None or (row.started_at, row.id) < (after.started_at, after.id))
            ]
            rows.sort(key=attrgetter("started_at", "id"), reverse=True)
            return rows[: limit + 1], self._position

        rows, position = await self._client.call("batches", found)
        items, now = rows[:limit], self._database.now()
        more = len(rows) > limit
        next = to_cursor(AfterBatch(items[-1].started_at, items[-1].id)) if more else None
        return Page([show_activity(row, now) for row in items], next, position)

    async def upload(self, id: UUID, *, owner: str | None) -> UploadView:
        rows = await self._client.call("upload", lambda: self._of("uploads", id, owner))
        return only(UploadView, rows, f"upload {id}")

    async def uploads(
        self,
        batch: UUID,
        *,
        owner: str | None,
        state: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[UploadView]:
        after = None if cursor is None else from_cursor(cursor, AfterUpload)

        def found() -> tuple[list[Any], list[UploadView], int]:
            rows = [
                row
                for row in self._rows(UploadView, "uploads")
                if row.batch == batch
                and state in (None, row.state)
                and (after is None or (row.path, row.id) > (after.path, after.id))
            ]
            rows.sort(key=attrgetter("path", "id"))
            return self._of("batches", batch, owner), rows[: limit + 1], self._position

        batches, rows, position = await self._client.call("uploads", found)
        only(BatchView, batches, f"batch {batch}")
        items, more = rows[:limit], len(rows) > limit
        next = to_cursor(AfterUpload(items[-1].path, items[-1].id)) if more else None
        return Page(items, next, position)

    async def attempts(self, upload: UUID, *, owner: str | None) -> list[AttemptView]:
        def found() -> tuple[list[Any], list[AttemptView]]:
            rows = self._rows(AttemptView, "attempts")
            return self._of("uploads", upload, owner), [r for r in rows if r.upload == upload]

        uploads, attempts = await self._client.call("attempts", found)
        only(UploadView, uploads, f"upload {upload}")
        return sorted(attempts, key=attrgetter("number"))

    def report(
        self, batch: UUID, *, owner: str | None, only_failed: bool = False
    ) -> AbstractAsyncContextManager[Report]:
        raise NotImplementedError("the in-memory read model has no reports")

    @property
    def _position(self) -> int:
        return self._database.positions.get(NAME, 0)

    def _of(self, table: str, id: UUID, owner: str | None) -> list[Any]:
        row: Any = self._database.read_model[table].get(id)
        return [copied(row)] if row is not None and owner in (None, row.owner) else []

    def _rows(self, view: type[View], table: str) -> list[View]:
        return [copied(row) for row in self._database.read_model[table].values()]  # type: ignore[misc]


def only(view: type[View], rows: list[View], what: str) -> View:
    if not rows:
        raise NotFound(f"no {what}")
    return rows[0]


def copied(row: Any) -> Any:
    return _copied(type(row), row)


class MemoryFeed:
    """The port `FeedSource` in memory."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._database = client.database

    async def changes(
        self, selection: FeedFilter, *, since: int, after: int, limit: int
    ) -> ChangePage:
        asked = _Asked(selection, since, after, limit)
        return await self._client.call("changes", lambda: self._changes(asked))

    async def reach(self) -> tuple[int, int]:
        database = self._database
        head = database.rows[-1].position if database.rows else 0
        return await self._client.call("reach", lambda: (database.positions.get(NAME, 0), head))

    async def known(self, ids: frozenset[UUID], *, owner: str | None) -> frozenset[UUID]:
        batches: dict[UUID, Any] = self._database.read_model["batches"]
        return await self._client.call(
            "known",
            lambda: frozenset(
                id for id in ids if id in batches and owner in (None, batches[id].owner)
            ),
        )

    def _changes(self, asked: _Asked) -> ChangePage:
        tables, selection = self._database.read_model, asked.selection

        def of_owner(row: Any) -> bool:
            return row.position > asked.after and selection.owner in (None, row.owner)

        def page(rows: list[Any]) -> list[Any]:
            return [copied(row) for row in sorted(rows, key=attrgetter("position"))][
                : asked.limit + 1
            ]

        batches = page(
            [
                row
                for id, row in tables["batches"].items()
                if of_owner(row) and (selection.batches is None or id in selection.batches)
            ]
        )
        uploads = page(
            [
                row
                for row in tables["uploads"].values()
                if of_owner(row) and row.batch in selection.uploads_of  # type: ignore[union-attr]
            ]
        )
        attempts = [
            copied(row)
            for upload in uploads
            for row in sorted(
                (
                    row
                    for row in tables["attempts"].values()
                    if row.upload == upload.id and row.position > asked.since  # type: ignore[union-attr]
                ),
                key=attrgetter("number"),
            )
        ]
        now = self._database.now()
        place = [(self._database.positions.get(NAME, 0), self._database.epoch)]
        return _page(asked, place, [show_activity(row, now) for row in batches], uploads, attempts)


class MemoryUsage:
    """The port `Usage` in memory."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def of_owner(self, owner: str) -> StorageUsage:
        return await self._client.call("usage", lambda: self._used("owner", owner))

    async def of_batch(self, batch: UUID) -> StorageUsage:
        return await self._client.call("usage", lambda: self._used("batch", batch))

    def _used(self, column: str, value: object) -> StorageUsage:
        rows: list[Any] = [
            row
            for row in self._client.database.read_model["uploads"].values()
            if getattr(row, column) == value and row.state not in GONE  # type: ignore[union-attr]
        ]
        sizes = (row.received if row.size is None else row.size for row in rows)
        return StorageUsage(sum(sizes), len(rows))


class MemoryUploadStatusLookup:
    """The port `UploadStatusLookup` in memory."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._uploads: dict[Any, Any] = client.database.read_model["uploads"]

    async def idle(self, before: datetime, limit: int) -> Sequence[IdleUpload]:
        return await self._client.call(
            "idle",
            lambda: [
                IdleUpload(row.id, row.version)
                for row in self._uploads.values()
                if row.state in ("registered", "transferring") and row.updated_at < before
            ][:limit],
        )

    async def of(self, uploads: Sequence[UUID]) -> dict[UUID, UploadStatus]:
        return await self._client.call(
            "status",
            lambda: {
                id: UploadStatus(row.state, row.blob)
                for id in uploads
                if (row := self._uploads.get(id)) is not None
            },
        )


def stored_columns(database: MemoryDatabase, table: str) -> dict[Any, dict[str, Any]]:
    """Return the rows of a table without what is derived from the time."""
    return {
        key: {
            name: value
            for name, value in msgspec.structs.asdict(row).items()
            if name not in DERIVED
        }
        for key, row in database.read_model[table].items()
    }
