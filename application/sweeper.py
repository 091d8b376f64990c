"""The sweeper: expires idle uploads, and deletes bytes that no upload needs.

Every step is idempotent and may be interrupted by a crash at any point: the next round completes
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.commands import UploadCommand, expire_idle
from application.errors import NotFound
from application.handlers.execute import CommandContext, execute
from application.ports.blobs import BlobInventory, BlobStore
from application.ports.event_log import EventLog
from application.ports.limits import RemotePreemption
from application.ports.read_model import UploadStatus, UploadStatusLookup
from application.transfers.locks import upload_blob_name, upload_id_from_blob_name
from domain.errors import CommandRejected
from domain.event import topic_of
from domain.ids import is_partial_upload
from domain.upload.aggregate import Upload
from domain.upload.events import UploadCancelled, UploadErased, UploadExpired
from domain.upload.state import GONE, UploadState

BY = "sweeper"
MAX_UPLOADS_PER_STEP = 500  # uploads per step

FREEING = tuple(topic_of(event) for event in (UploadCancelled, UploadExpired, UploadErased))

_UNTOUCHED = 2  # the version of an upload that ended right after it was registered


class SweepResult(msgspec.Struct, frozen=True):
    """Deleted blobs: those of ended uploads, and orphans that no event refers to."""

    ended: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()


class SweeperRecords(Protocol):
    """Records of the sweeper, in the session of the leader. Raises what a lost session raises."""

    async def position(self) -> int:
        """Return the position up to which bytes of ended uploads were deleted."""

    async def save_position(self, position: int) -> None:
        """Save the position."""

    async def delete_old_idempotency_records(self) -> bool:
        """Delete the oldest records beyond their retention; return whether more may be left."""


class Sweeper:
    """Sweeps a bounded number of uploads and blobs per step. Times in seconds.

    `expiry` is how long an unfinished upload is kept without a new byte, `orphan_age` how old a
    blob must be before it may be an orphan: a younger one may be about to be recorded.
    """

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        inventory: BlobInventory,
        statuses: UploadStatusLookup,
        remote_preemption: RemotePreemption,
        *,
        expiry: float,
        orphan_age: float,
        now: Callable[[], datetime],
    ) -> None:
        self._log = log
        self._blobs = blobs
        self._inventory = inventory
        self._statuses = statuses
        self._remote_preemption = remote_preemption
        self.expiry = expiry
        self._orphan_age = orphan_age
        self._now = now

    @property
    def parts(self) -> int:
        """Number of partitions of the blob store."""
        return self._inventory.parts

    async def expire(self) -> int:
        """Record UploadExpired for idle uploads; return their number.

        Raises TooManyConflicts, Unavailable.
        """
        found = await self._statuses.idle(
            self._now() - timedelta(seconds=self.expiry), MAX_UPLOADS_PER_STEP
        )
        expired = 0
        for idle in found:
            context = CommandContext(BY, self._now())
            command = UploadCommand(idle.upload, partial(expire_idle, idle_since=idle.version))
            expired += (await execute(self._log, command, context)).position > 0
        return expired

    async def free_ended(self, after: int) -> int:
        """Delete the bytes of uploads that ended beyond position `after` in the log.

        Returns the position to continue from. Raises Unavailable.
        """
        head = await self._log.head()
        if head <= after:
            return after
        events = await self._log.read(after, limit=MAX_UPLOADS_PER_STEP, topics=FREEING)
        for recorded in events:
            await self._free(recorded)
        return head if len(events) < MAX_UPLOADS_PER_STEP else events[-1].position

    async def clear(self, part: int) -> SweepResult:
        """Delete blobs that a crash or a late client left in a partition of the store.

        The read model selects candidates; only the event log, read again, decides on deletion.
        Raises Unavailable.
        """
        ended: list[str] = []
        orphans: list[str] = []
        stored = await self._inventory.stale(part, self._orphan_age)
        named = [(name, upload) for name in stored if (upload := upload_id_from_blob_name(name))]
        for start in range(0, len(named), MAX_UPLOADS_PER_STEP):
            for name, id in await self._suspects(named[start : start + MAX_UPLOADS_PER_STEP]):
                verdict = await self._verdict(name, id)
                if verdict is not None:
                    await self._blobs.delete(name)
                    (ended if verdict else orphans).append(name)
        await self._expire_parts(part, named)
        return SweepResult(tuple(ended), tuple(orphans))

    async def _free(self, recorded: RecordedEvent) -> None:
        if recorded.version <= _UNTOUCHED:
            return
        self._log.forget(recorded.stream)
        upload = await self._log.upload(recorded.stream)
        if upload.blob is None:  # a transfer may still be running
            await self._remote_preemption.stop(upload.id)
        for name in {upload_blob_name(upload.id), upload.blob or upload_blob_name(upload.id)}:
            await self._blobs.delete(name)

    async def _expire_parts(self, part: int, named: Sequence[tuple[str, UUID]]) -> None:
        """Expire partial uploads by the age of their blobs: they have no row in the read model."""
        if not any(is_partial_upload(id) for _, id in named):
            return
        for name in await self._inventory.stale(part, self.expiry):
            id = upload_id_from_blob_name(name)
            if id is None or not is_partial_upload(id):
                continue
            context = CommandContext(BY, self._now())
            with suppress(NotFound, CommandRejected):  # unknown, or joined or cancelled meanwhile
                await execute(self._log, UploadCommand(id, Upload.expire), context)

    async def _suspects(self, named: Sequence[tuple[str, UUID]]) -> list[tuple[str, UUID]]:
        known = await self._statuses.of([id for _, id in named])
        return [(name, id) for name, id in named if not _in_order(name, id, known.get(id))]

    async def _verdict(self, name: str, id: UUID) -> bool | None:
        """Return None for a referenced blob; else whether its upload has ended."""
        self._log.forget(id)
        try:
            upload = await self._log.upload(id)
        except NotFound:
            return False
        joined = is_partial_upload(id) and upload.state is UploadState.COMPLETED
        if joined or upload.state in GONE:
            return True
        wanted = upload.blob or upload_blob_name(id)
        return None if name == wanted else False


def _in_order(name: str, id: UUID, standing: UploadStatus | None) -> bool:
    if standing is None or standing.state in GONE:
        return False
    return name == (standing.blob or upload_blob_name(id))
