"""Transfers: append a body to an upload, find its offset, cancel it, delete its bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import partial
from uuid import UUID

import msgspec

from application.append import NO_CAUSE, Causation
from application.commands import UploadCommand
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

CLOSE_POLL_INTERVAL = 0.05  # seconds
UNRECORDED = "bytes that were stored and not recorded are sent again"
MAX_RECORDS_PER_SECOND = 100  # of all running transfers together, approximately


class TransferLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in bytes and seconds; the settings of the same names document them."""

    max_file_size: int
    min_free_bytes: int
    progress_interval: float


class Actor(msgspec.Struct, frozen=True):
    """Principal that events are recorded for, and the command that caused them."""

    name: str
    cause: Causation = NO_CAUSE


class AppendRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request to append a body to an upload.

    `offset` is the client's offset of the upload; `length` is the size of the body
    in bytes, None where that is not known before its end. `size` is that of the whole file, if
    the client declares it only now. With `last`, the end of the body is the end of the file: how a
    file of unknown size ends. With a `checksum`, the body counts as a whole or not at all.
    """

    upload: UUID
    offset: int
    length: int | None = None
    size: int | None = None
    last: bool = False
    checksum: Checksum | None = None


class Transfers:
    """Operations on the bytes of uploads, one request at a time per upload."""

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        remote: RemotePreemption,
        *,
        quotas: Quotas,
        limits: TransferLimits,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self.log = log
        self.blobs = blobs
        self.limits = limits
        self.free_space = FreeSpaceGuard(blobs, limits.min_free_bytes, clock)
        self.quotas = quotas
        self.upload_locks = UploadLocks()
        self._remote = remote
        self._now = now
        self._clock = clock
        self._writers = BlobWriterLeases(log, blobs, remote, clock)
        remote.on_stop(self.upload_locks.stop)

    async def close(self, grace: float = 0.0) -> None:
        """Reject new transfers at once, and preempt those that still run after `grace` seconds.

        Each preempted transfer records the bytes that it has received.
        """
        self.upload_locks.reject_new(Stopping())
        end = self._clock() + grace
        while len(self.upload_locks) and self._clock() < end:  # noqa: ASYNC110
            await asyncio.sleep(CLOSE_POLL_INTERVAL)
        self.upload_locks.close(Stopping())

    def context(self, actor: Actor) -> CommandContext:
        return CommandContext(actor.name, self._now(), actor.cause)

    async def receive(
        self,
        request: AppendRequest,
        chunks: AsyncIterator[bytes],
        actor: Actor,
        here: ReadBuffered = no_buffered_bytes,
    ) -> CommandResult[Upload]:
        """Append the body to the upload. When this returns, its bytes are durable and recorded.

        A running transfer of the same upload is preempted first. Bytes received before an error
        are kept and recorded, except those of a body that is too large. After a preemption the
        bytes that `here` returns are kept, too, even if this request never held the lock.

        Raises NotFound, NotAcceptingBytes, OffsetMismatch, BodyTooLarge, BodyChecksumMismatch,
        TransferAborted, StorageFull, BatchFull, QuotaExceeded, TooManyTransfers,
        CommandRejected, TooManyConflicts, Unavailable.
        """
        context = partial(self.context, actor)
        async with self.upload_locks.acquire(request.upload, allow_preempted=True) as lock:
            ahead = await here() if lock.is_preempted else b""
            if not ahead:
                lock.raise_if_preempted()
            self._check(await self._current(request), request)
            if request.size is not None:
                await self.declare(request.upload, request.size, actor)
            async with self._writers.open_writer(request.upload, context) as (upload, writer):
                self._check(upload, request)
                await self._require_room(upload, request)
                if writer.has_excess:
                    upload = await self._drop_excess(upload, context())
                    self._check(upload, request)
                receiver = self._receiver(upload, writer, request, lock, context)
                permit = self.quotas.transfer_permit(upload.owner, lock.raise_if_preempted)
                async with permit, self.free_space.with_free_bytes():
                    return await receiver.run(chunks, here, ahead)

    async def _drop_excess(self, upload: Upload, context: CommandContext) -> Upload:
        """Record that the transfer continues at its offset, and return the upload.

        Bytes are stored beyond it: an append that counts them may still be recorded, because a
        process died or the log was lost in the meantime. At another version it is refused.
        """
        decision = partial(Upload.interrupt_transfer, received=upload.received, reason=UNRECORDED)
        try:
            return (await execute(self.log, UploadCommand(upload.id, decision), context)).aggregate
        except CommandRejected:  # it was recorded just now
            self.log.forget(upload.id)
            return await self.log.upload(upload.id)

    def _receiver(
        self,
        upload: Upload,
        writer: BlobWriter,
        request: AppendRequest,
        lock: UploadLock,
        context: Callable[[], CommandContext],
    ) -> BodyReceiver:
        options = ReceiveOptions(
            limit=self._limit(upload),
            last=request.last and upload.size is None,
            record_interval=self._record_interval,
            context=context,
            checksum=request.checksum,
        )
        return BodyReceiver(
            self.log, self.blobs, writer, upload, upload_blob_name(upload.id), lock, options
        )

    async def current_upload(self, id: UUID, actor: Actor) -> Upload:
        """Preempt a running transfer, record its bytes, and return the upload.

        The caller must have dropped the upload from the event log's cache after the request
        arrived. Raises NotFound, TransferAborted, TooManyConflicts, Unavailable.
        """
        async with self.upload_locks.acquire(id):
            upload = await self.log.upload(id)
            if upload.state not in INCOMING:
                return upload
            if not upload.received and not await self.blobs.size(upload_blob_name(id)):
                return upload
            context = partial(self.context, actor)
            try:
                async with self._writers.open_writer(id, context) as (upload, _):
                    return upload
            except NotAcceptingBytes:  # cancelled, or received by another process
                return await self.log.upload(id)

    async def declare(self, id: UUID, size: int, actor: Actor) -> Upload:
        """Declare the size of an upload that was registered without one. Idempotent.

        Raises NotFound, BodyTooLarge, CommandRejected if another size was declared,
        TooManyConflicts, Unavailable.
        """
        if size > self.limits.max_file_size:
            raise BodyTooLarge(self.limits.max_file_size)
        command = UploadCommand(id, partial(Upload.declare_size, size=size))
        return (await execute(self.log, command, self.context(actor))).aggregate

    async def cancel(
        self, command: UploadCommand, context: CommandContext
    ) -> CommandResult[Upload]:
        """Cancel the upload and delete its bytes.

        Raises NotFound, CommandRejected if it has ended already, TransferAborted,
        TooManyConflicts, Unavailable.
        """
        async with self.upload_locks.acquire(command.id):
            decided = await execute(self.log, command, context)
            await self._remote.stop(command.id)
            await self.delete_blobs(decided.aggregate)
            return decided

    async def terminate(
        self, command: UploadCommand, context: CommandContext
    ) -> CommandResult[Upload]:
        """Cancel for the client. Raises NotAcceptingBytes if the upload is gone already."""
        try:
            return await self.cancel(command, context)
        except CommandRejected:
            if (state := (await self.log.upload(command.id)).state) in GONE:
                raise NotAcceptingBytes(state) from None
            raise

    async def delete_blobs(self, upload: Upload) -> None:
        """Delete the bytes of an upload that has ended."""
        await self.blobs.delete(upload_blob_name(upload.id))
        if upload.blob not in (None, upload_blob_name(upload.id)):
            await self.blobs.delete(str(upload.blob))

    async def _current(self, request: AppendRequest) -> Upload:
        """Return the upload, reloaded if the cached one does not match the request."""
        upload = await self.log.upload(request.upload)
        if upload.received != request.offset or upload.state not in INCOMING:
            self.log.forget(request.upload)
            upload = await self.log.upload(request.upload)
        return upload

    def _check(self, upload: Upload, request: AppendRequest) -> None:
        if upload.state not in INCOMING:
            raise NotAcceptingBytes(upload.state)
        if upload.received != request.offset:
            raise OffsetMismatch(upload.received, request.offset)
        if request.offset + (request.length or 0) > self._limit(upload):
            raise BodyTooLarge(self._limit(upload))

    async def _require_room(self, upload: Upload, request: AppendRequest) -> None:
        expected = request.length
        if expected is None:
            expected = (upload.size or upload.received) - upload.received
        await self.free_space.require(expected)
        undeclared = expected if upload.size is None else 0
        await self.quotas.require(upload.owner, upload.batch, undeclared)

    def _limit(self, upload: Upload) -> int:
        return self.limits.max_file_size if upload.size is None else upload.size

    def _record_interval(self) -> float:
        """Return the seconds between two records of one transfer; longer if many run."""
        return max(self.limits.progress_interval, len(self.upload_locks) / MAX_RECORDS_PER_SECOND)
