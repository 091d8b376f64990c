"""Everything that may be done with the bytes of an upload on their way in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import partial
from uuid import UUID

import msgspec

from application.append import NO_CAUSE, Causation
from application.commands import CancelUpload, DeclareSize
from application.handlers.execute import CommandContext, CommandResult, execute
from application.ports.blobs import BlobStore, BlobWriter
from application.ports.event_log import EventLog
from application.ports.limits import RemotePreemption
from application.transfers.errors import BodyTooLarge, NotAcceptingBytes, OffsetMismatch, Stopping
from application.transfers.locks import BlobWriterLeases, UploadLock, UploadLocks, upload_blob_name
from application.transfers.quotas import FreeSpaceGuard, Quotas
from application.transfers.receiver import (
    BodyReceiver,
    Checksum,
    ReadBuffered,
    ReceiveOptions,
    no_buffered_bytes,
)
from domain.errors import CommandRejected
from domain.upload.aggregate import Upload
from domain.upload.state import GONE, INCOMING

GLANCE = 0.05  # seconds between two looks whether the last transfer has ended
RECORDS_PER_SECOND = 100  # of all running transfers together, about


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes, times in seconds; the settings of the same names say more."""

    max_file_size: int
    min_free_bytes: int
    progress_interval: float


class Actor(msgspec.Struct, frozen=True):
    """In whose name events are recorded, and in answer to what."""

    name: str
    cause: Causation = NO_CAUSE


class AppendRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A body that is about to arrive for an upload.

    `offset` is where the sender believes the upload stands; `length` is the size of the body
    in bytes, None where that is not known before its end. `size` is that of the whole file, if
    the sender says it only now. With `last`, the end of the body is the end of the file: how a
    file of unknown size ends. With a `checksum`, the body counts as a whole or not at all.
    """

    upload: UUID
    offset: int
    length: int | None = None
    size: int | None = None
    last: bool = False
    checksum: Checksum | None = None


class Transfers:
    """Bytes of uploads: taken in, asked about, thrown away; by one request at a time."""

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        elsewhere: RemotePreemption,
        *,
        quotas: Quotas,
        limits: Limits,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self.log = log
        self.blobs = blobs
        self.limits = limits
        self.room = FreeSpaceGuard(blobs, limits.min_free_bytes, clock)
        self.quotas = quotas
        self.turns = UploadLocks()
        self._elsewhere = elsewhere
        self._now = now
        self._clock = clock
        self._claims = BlobWriterLeases(log, blobs, elsewhere, clock)
        elsewhere.on_stop(self.turns.stop)

    async def close(self, grace: float = 0.0) -> None:
        """Refuses new transfers at once, and ends those that still run after `grace` seconds.

        What arrived of them is committed by whoever receives it.
        """
        self.turns.refuse(Stopping())
        end = self._clock() + grace
        while len(self.turns) and self._clock() < end:  # noqa: ASYNC110
            await asyncio.sleep(GLANCE)
        self.turns.close(Stopping())

    def context(self, speaker: Actor) -> CommandContext:
        return CommandContext(speaker.name, self._now(), speaker.cause)

    async def receive(
        self,
        incoming: AppendRequest,
        chunks: AsyncIterator[bytes],
        speaker: Actor,
        here: ReadBuffered = no_buffered_bytes,
    ) -> CommandResult[Upload]:
        """Appends the body to the upload. When this returns its bytes are durable and recorded.

        A transfer of the same upload that is still running is ended first. Bytes that arrived
        before an error are kept and recorded, those of a body that is too long excepted. So are
        those that are `here` when somebody newer asks, also before this one had its turn.

        Raises NotFound, NotIncoming, OffsetMismatch, TooLong, ChecksumMismatch, Ended, StorageFull,
        BatchFull, QuotaExceeded, TooManyTransfers, CommandRejected, TooManyConflicts, Unavailable.
        """
        context = partial(self.context, speaker)
        async with self.turns.take(incoming.upload, late=True) as turn:
            ahead = await here() if turn.ended else b""
            if not ahead:
                turn.go_on()
            self._check(await self._current(incoming), incoming)
            if incoming.size is not None:
                await self.declare(incoming.upload, incoming.size, speaker)
            async with self._claims.claimed(incoming.upload, context) as (upload, writer):
                self._check(upload, incoming)
                await self._require_room(upload, incoming)
                reception = self._reception(upload, writer, incoming, turn, context)
                transferring = self.quotas.transferring(upload.owner, turn.go_on)
                async with transferring, self.room.with_free_bytes():
                    return await reception.run(chunks, here, ahead)

    def _reception(
        self,
        upload: Upload,
        writer: BlobWriter,
        incoming: AppendRequest,
        turn: UploadLock,
        context: Callable[[], CommandContext],
    ) -> BodyReceiver:
        terms = ReceiveOptions(
            limit=self._limit(upload),
            last=incoming.last and upload.size is None,
            pace=self._pace,
            context=context,
            checksum=incoming.checksum,
        )
        return BodyReceiver(
            self.log, self.blobs, writer, upload, upload_blob_name(upload.id), turn, terms
        )

    async def settle(self, id: UUID, speaker: Actor) -> Upload:
        """The upload as it stands: a running transfer is ended and its bytes are counted.

        What the log remembers of it must have been forgotten since the question came. Raises
        NotFound, Ended, TooManyConflicts, Unavailable.
        """
        async with self.turns.take(id):
            upload = await self.log.upload(id)
            if upload.state not in INCOMING:
                return upload
            if not upload.received and not await self.blobs.size(upload_blob_name(id)):
                return upload
            context = partial(self.context, speaker)
            try:
                async with self._claims.claimed(id, context) as (upload, _):
                    return upload
            except NotAcceptingBytes:  # cancelled or received elsewhere while we looked
                return await self.log.upload(id)

    async def declare(self, id: UUID, size: int, speaker: Actor) -> Upload:
        """The size of an upload that was registered without one; saying it twice is fine.

        Raises NotFound, TooLong, CommandRejected where another size was declared, TooManyConflicts,
        Unavailable.
        """
        if size > self.limits.max_file_size:
            raise BodyTooLarge(self.limits.max_file_size)
        command = DeclareSize(upload=id, size=size)
        return (await execute(self.log, command, self.context(speaker))).aggregate

    async def cancel(self, command: CancelUpload, context: CommandContext) -> CommandResult[Upload]:
        """Calls the upload off and frees its bytes.

        Raises NotFound, CommandRejected when it has ended already, Ended, TooManyConflicts,
        Unavailable.
        """
        async with self.turns.take(command.upload):
            decided = await execute(self.log, command, context)
            await self._elsewhere.stop(command.upload)
            await self.free(decided.aggregate)
            return decided

    async def terminate(
        self, command: CancelUpload, context: CommandContext
    ) -> CommandResult[Upload]:
        """The same for its sender, who is told NotIncoming of one that is gone already."""
        try:
            return await self.cancel(command, context)
        except CommandRejected:
            if (state := (await self.log.upload(command.upload)).state) in GONE:
                raise NotAcceptingBytes(state) from None
            raise

    async def free(self, upload: Upload) -> None:
        """Deletes the bytes of an upload that nobody may want any more."""
        await self.blobs.delete(upload_blob_name(upload.id))
        if upload.blob not in (None, upload_blob_name(upload.id)):
            await self.blobs.delete(str(upload.blob))

    async def _current(self, incoming: AppendRequest) -> Upload:
        """The upload; read anew where what is remembered does not fit what the sender says."""
        upload = await self.log.upload(incoming.upload)
        if upload.received != incoming.offset or upload.state not in INCOMING:
            self.log.forget(incoming.upload)
            upload = await self.log.upload(incoming.upload)
        return upload

    def _check(self, upload: Upload, incoming: AppendRequest) -> None:
        if upload.state not in INCOMING:
            raise NotAcceptingBytes(upload.state)
        if upload.received != incoming.offset:
            raise OffsetMismatch(upload.received, incoming.offset)
        if incoming.offset + (incoming.length or 0) > self._limit(upload):
            raise BodyTooLarge(self._limit(upload))

    async def _require_room(self, upload: Upload, incoming: AppendRequest) -> None:
        expected = incoming.length
        if expected is None:
            expected = (upload.size or upload.received) - upload.received
        await self.room.require(expected)
        undeclared = expected if upload.size is None else 0
        await self.quotas.require(upload.owner, upload.batch, undeclared)

    def _limit(self, upload: Upload) -> int:
        return self.limits.max_file_size if upload.size is None else upload.size

    def _pace(self) -> float:
        """Seconds between two records of one transfer: the more of them run, the longer."""
        return max(self.limits.progress_interval, len(self.turns) / RECORDS_PER_SECOND)
