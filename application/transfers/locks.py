"""Exclusive locks: one transfer at a time per upload, one writer at a time per blob.

Blobs of uploads are named here, so that their upload can be found from their name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

from application.commands import UploadCommand
from application.errors import TooManyConflicts
from application.handlers.execute import CommandContext, execute
from application.ports.blobs import BlobBusy, BlobStore, BlobTooShort, BlobWriter
from application.ports.event_log import EventLog
from application.ports.limits import RemotePreemption
from application.transfers.errors import NotAcceptingBytes, Preempted, TransferAborted
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING

BLOB_FOLDER = "uploads"


def upload_blob_name(upload: UUID) -> str:
    """Return the name of the blob that transfers of the upload append to."""
    return f"{BLOB_FOLDER}/{upload}"


def single_request_blob_name(upload: UUID, token: UUID) -> str:
    """Return the name of a blob whose file arrived complete with its registration.

    Two clients may register the same path at once, each with its own bytes: the token keeps their
    blobs apart, and the event log decides which of them becomes the upload's.
    """
    return f"{BLOB_FOLDER}/{upload}.{token.hex}"


def upload_id_from_blob_name(blob: str) -> UUID | None:
    """Return the upload whose bytes a blob of this name holds; None for any other blob."""
    folder, _, file = blob.partition("/")
    if folder != BLOB_FOLDER:
        return None
    try:
        return UUID(file.partition(".")[0])
    except ValueError:
        return None


PREEMPTION_TIMEOUT = 5.0  # seconds until another process must have released an upload
LOCK_POLL_INTERVAL = 0.003  # seconds
PREEMPTION_REPEAT_INTERVAL = 0.25  # seconds


class BlobWriterLeases:
    """Exclusive writers of blobs, opened at the offset that the event log has recorded."""

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        remote: RemotePreemption,
        clock: Callable[[], float],
    ) -> None:
        self._log = log
        self._blobs = blobs
        self._remote = remote
        self._clock = clock

    @asynccontextmanager
    async def open_writer(
        self, id: UUID, context: Callable[[], CommandContext]
    ) -> AsyncIterator[tuple[Upload, BlobWriter]]:
        """Yield the upload and an exclusive writer of its blob at the recorded offset.

        The recorded offset is authoritative. Bytes beyond it were never acknowledged, and a crash
        may have left anything in their place: the first write drops them. If the blob is shorter,
        the loss is recorded and the upload continues from the stored size. Raises NotFound,
        NotAcceptingBytes, TooManyConflicts, Unavailable.
        """
        preemption = _PreemptionRequest(self._remote, id, self._clock)
        while True:
            upload = await self._log.upload(id)
            if upload.state not in INCOMING:
                raise NotAcceptingBytes(upload.state)
            try:
                writer = await self._blobs.append(upload_blob_name(id), upload.received)
            except BlobTooShort as short:
                loss = UploadCommand(id, partial(Upload.record_data_loss, stored=short.stored))
                await execute(self._log, loss, context())
                continue
            except BlobBusy:
                await preemption.wait()
                self._log.forget(id)
                continue
            try:
                # The recorded offset is stable only now that no other process can write.
                self._log.forget(id)
                current = await self._log.upload(id)
                if current.received == upload.received and current.state in INCOMING:
                    yield current, writer
                    return
            finally:
                await writer.close()


class _PreemptionRequest:
    """Request to other processes to release an upload, repeated until a deadline."""

    def __init__(self, remote: RemotePreemption, upload: UUID, clock: Callable[[], float]) -> None:
        self._remote = remote
        self._upload = upload
        self._clock = clock
        self._deadline = clock() + PREEMPTION_TIMEOUT
        self._again: float | None = None

    async def wait(self) -> None:
        """Sleep until the next try. Raises TooManyConflicts after the deadline, Unavailable."""
        now = self._clock()
        if now > self._deadline:
            raise TooManyConflicts(f"another process is still receiving {self._upload}; try again")
        if self._again is None or now >= self._again:
            await self._remote.stop(self._upload)
            self._again = self._clock() + PREEMPTION_REPEAT_INTERVAL
        await asyncio.sleep(LOCK_POLL_INTERVAL)


class UploadLock:
    """Exclusive lock of one task on one upload, until a newer request preempts it."""

    def __init__(self) -> None:
        self.released: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reason: Exception | None = None
        self._waiting: asyncio.Task[object] | None = None

    @property
    def is_preempted(self) -> bool:
        """True if a newer request or another reason ended this lock."""
        return self._reason is not None

    def preempt(self, reason: Exception) -> None:
        """Make the holder's wait for its client raise `reason`, now or when it next waits."""
        if self._reason is not None:
            return
        self._reason = reason
        if self._waiting is not None:
            self._waiting.cancel()

    def raise_if_preempted(self) -> None:
        """Raise the reason that the lock was preempted for, if it was."""
        if self._reason is not None:
            raise self._reason

    async def next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """Return the client's next chunk, None at the end. Raises the reason of a preemption.

        The holder is interrupted only in here: never while it writes, syncs or records.
        """
        self.raise_if_preempted()
        task = asyncio.current_task()
        self._waiting = task
        try:
            return await anext(chunks, None)
        except asyncio.CancelledError:
            if self._reason is None or task is None or task.uncancel() > 0:
                raise
            raise self._reason from None
        finally:
            self._waiting = None


class UploadLocks:
    """Exclusive lock per upload. Acquiring a held lock preempts its holder."""

    def __init__(self) -> None:
        self._newest: dict[UUID, UploadLock] = {}
        self._closed: TransferAborted | None = None

    def __len__(self) -> int:
        return len(self._newest)

    @asynccontextmanager
    async def acquire(
        self, upload: UUID, *, allow_preempted: bool = False
    ) -> AsyncIterator[UploadLock]:
        """Preempt the current holder, wait until it has committed its bytes, and hold the lock.

        Raises Preempted if a newer request arrived meanwhile. With `allow_preempted` the lock is
        acquired even then, so that the holder can record the bytes that it has received.
        """
        if self._closed is not None:
            raise self._closed
        lock, holder = UploadLock(), self._newest.get(upload)
        self._newest[upload] = lock
        try:
            if holder is not None:
                holder.preempt(Preempted())
                await asyncio.shield(holder.released)
            if not allow_preempted:
                lock.raise_if_preempted()
            yield lock
        finally:
            self._leave(upload, lock, holder)

    def stop(self, upload: UUID) -> None:
        """Preempt the transfer of this upload, if this process has one."""
        if lock := self._newest.get(upload):
            lock.preempt(Preempted())

    def reject_new(self, reason: TransferAborted) -> None:
        """Make every later `acquire` raise `reason`."""
        self._closed = reason

    def close(self, reason: TransferAborted) -> None:
        """Preempt every running transfer and reject new ones with `reason`."""
        self.reject_new(reason)
        for lock in self._newest.values():
            lock.preempt(reason)

    def _leave(self, upload: UUID, lock: UploadLock, holder: UploadLock | None) -> None:
        if self._newest.get(upload) is lock and (holder is None or holder.released.done()):
            del self._newest[upload]
        if holder is None or holder.released.done():
            lock.released.set_result(None)
        else:  # cancelled while waiting: the next request still waits for the same holder
            holder.released.add_done_callback(lambda _: self._leave(upload, lock, None))
