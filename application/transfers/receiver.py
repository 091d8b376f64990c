"""Receiving one body into a blob: stored, made durable, recorded, in this order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from hashlib import md5, sha1, sha256, sha512
from hmac import compare_digest
from typing import Protocol, TypeAlias

import msgspec
from google_crc32c import Checksum as Crc32c

from application.commands import UploadCommand, record_received
from application.errors import StorageFull, Unavailable
from application.handlers.execute import CommandContext, CommandResult, execute
from application.ports.blobs import BlobStore, BlobWriter
from application.ports.event_log import EventLog
from application.transfers.errors import (
    BodyChecksumMismatch,
    BodyTooLarge,
    Stopping,
    TransferAborted,
)
from application.transfers.locks import UploadLock
from domain.upload.aggregate import Upload


class ProgressRecorder:
    """Periodic checkpoints of one transfer: one at a time, and none without new bytes.

    `record` makes bytes durable, records them, and returns whether more bytes are waiting.
    `record_interval` returns the seconds that bytes wait for a checkpoint. A checkpoint that
    fails, for instance because the upload was cancelled, preempts the transfer.
    """

    def __init__(
        self,
        lock: UploadLock,
        record_interval: Callable[[], float],
        record: Callable[[], Awaitable[bool]],
    ) -> None:
        self._lock = lock
        self._record_interval = record_interval
        self._record = record
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[bool] | None = None
        self._closed = False

    def schedule(self) -> None:
        """Schedule a checkpoint for bytes that were written, unless one is scheduled."""
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(self._record_interval(), self._begin)

    async def drain(self, *, ignore_errors: bool = False) -> None:
        """Begin no further checkpoint, wait for the running one, and raise its error."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})
            if not ignore_errors:
                self._task.result()

    def _begin(self) -> None:
        self._timer = None
        if self._task is not None:  # the disk is slow, and the last one is still under way
            self.schedule()
            return
        self._task = self._loop.create_task(self._run(), name="checkpoint")
        self._task.add_done_callback(self._ended)

    async def _run(self) -> bool:
        return await self._record()

    def _ended(self, task: asyncio.Task[bool]) -> None:
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            if isinstance(error, Exception):
                self._lock.preempt(error)
            return
        if not self._closed:
            self._task = None
        if task.result():
            self.schedule()


class Hasher(Protocol):
    """Incremental hash function."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


# md5 and sha1 detect damage only; they are not relied on against an attacker.
ALGORITHMS: dict[str, Callable[[], Hasher]] = {
    "sha1": lambda: sha1(usedforsecurity=False),
    "sha256": sha256,
    "sha512": sha512,
    "crc32c": Crc32c,
    "md5": lambda: md5(usedforsecurity=False),
}
"""By the names of the tus protocol (checksum extension)."""


class Checksum(msgspec.Struct, frozen=True):
    """Expected checksum of one body; `algorithm` is a key of ALGORITHMS."""

    algorithm: str
    digest: bytes

    def verify(self, content: bytes) -> None:
        """Raise BodyChecksumMismatch unless the content has this checksum."""
        check = ChecksumVerifier(self)
        check.update(content)
        check.verify()


class ChecksumVerifier:
    """Verification of a checksum while its body arrives."""

    def __init__(self, expected: Checksum) -> None:
        self._expected = expected
        self._running = ALGORITHMS[expected.algorithm]()
        self.update = self._running.update

    def verify(self) -> None:
        """Raise BodyChecksumMismatch unless the bytes so far have the expected checksum."""
        if not compare_digest(self._running.digest(), self._expected.digest):
            raise BodyChecksumMismatch(self._expected.algorithm)


MAX_FINAL_READS = 4  # of bytes already received, after a transfer was preempted

ReadBuffered: TypeAlias = Callable[[], Awaitable[bytes]]
"""Returns bytes of the body that were received and not yet read, without waiting for more."""


async def no_buffered_bytes() -> bytes:
    """ReadBuffered for a body that is a part of a larger request body: always empty."""
    return b""


class ReceiveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and callbacks for one body.

    `limit` is the size of the upload, or the largest allowed while it is unknown. `last` means
    that the end of the body is the end of the file. `record_interval` returns the seconds until
    progress is recorded next. With a `checksum` no byte counts before the checksum is verified.
    """

    limit: int
    last: bool
    record_interval: Callable[[], float]
    context: Callable[[], CommandContext]
    checksum: Checksum | None = None


class BodyReceiver:
    """Receiver of one body. Holds one chunk in memory, whatever the size of the file."""

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        writer: BlobWriter,
        upload: Upload,
        blob: str,
        lock: UploadLock,
        options: ReceiveOptions,
    ) -> None:
        self._log = log
        self._blobs = blobs
        self._writer = writer
        self._upload = upload
        self._blob = blob
        self._lock = lock
        self._options = options
        self._check = None if options.checksum is None else ChecksumVerifier(options.checksum)
        self._progress = ProgressRecorder(lock, options.record_interval, self._record_progress)
        self._position = 0  # of what was recorded last

    async def run(
        self,
        chunks: AsyncIterator[bytes],
        here: ReadBuffered = no_buffered_bytes,
        ahead: bytes = b"",
    ) -> CommandResult[Upload]:
        """Receive the body and return the upload; raise the reason of an early end.

        The bytes received before an early end are recorded. `ahead` was read from the body before.
        Raises TransferAborted, BodyTooLarge, BodyChecksumMismatch, StorageFull, CommandRejected,
        NotFound, TooManyConflicts, Unavailable.
        """
        try:
            await self._receive_chunks(chunks, here, ahead)
            await self._progress.drain()
            self._verify()
        except (BodyTooLarge, BodyChecksumMismatch) as error:
            await self._record_interruption(error, keep=False)
            raise
        except (TransferAborted, StorageFull, asyncio.CancelledError) as error:
            matches = self._checksum_matches()
            if isinstance(error, TransferAborted) and self._has_every_byte() and matches:
                return await self._complete()
            await self._record_interruption(error, keep=matches)
            raise
        finally:
            await self._progress.drain(ignore_errors=True)
        if self._has_every_byte() or self._options.last:
            return await self._complete()
        return await self._record_partial()

    async def _receive_chunks(
        self, chunks: AsyncIterator[bytes], here: ReadBuffered, ahead: bytes
    ) -> None:
        """Write every chunk to the blob. The hot path.

        After a preemption the bytes that are already buffered are written, too: the client has
        sent them, and need not send them again.
        """
        try:
            if ahead:
                await self._add(ahead)
            while (chunk := await self._lock.next(chunks)) is not None:
                await self._add(chunk)
        except TransferAborted:
            for _ in range(MAX_FINAL_READS):
                if not (rest := await here()):
                    break
                await self._add(rest)
            raise

    async def _add(self, chunk: bytes) -> None:
        if self._writer.size + len(chunk) > self._options.limit:
            raise BodyTooLarge(self._options.limit)
        await self._writer.write(chunk)
        if self._check is None:
            self._progress.schedule()
        else:  # no byte of the body counts before its checksum was verified
            self._check.update(chunk)

    async def _record_progress(self) -> bool:
        """Make the bytes so far durable, record them, and return whether more arrived meanwhile.

        The last byte allowed is not recorded: whether the body ends there is not known yet.
        """
        durable = await self._writer.checkpoint()
        await self._record(min(durable, self._options.limit - 1))
        return durable < self._writer.size

    def _has_every_byte(self) -> bool:
        """Return whether every declared byte is stored; False for an upload of unknown size."""
        return self._upload.size is not None and self._writer.size == self._upload.size

    def _verify(self) -> None:
        if self._check is not None:
            self._check.verify()

    def _checksum_matches(self) -> bool:
        """Return whether the bytes so far match the expected checksum, if there is one."""
        try:
            self._verify()
        except BodyChecksumMismatch:
            return False
        return True

    async def _complete(self) -> CommandResult[Upload]:
        await self._progress.drain()
        size = self._writer.size
        await self._blobs.finish(self._blob, size)
        return await self._record(size, complete=True)

    async def _record_partial(self) -> CommandResult[Upload]:
        return await self._record(await self._writer.sync())

    async def _record(self, received: int, *, complete: bool = False) -> CommandResult[Upload]:
        command = UploadCommand(
            self._upload.id,
            partial(record_received, received=received, blob=self._blob, complete=complete),
            accepts_cached=True,
        )
        decided = await execute(self._log, command, self._options.context())
        self._position = max(self._position, decided.position)
        return CommandResult(decided.aggregate, self._position)

    async def _record_interruption(self, error: BaseException, *, keep: bool) -> None:
        """Record the offset reached; without `keep`, the offset that was recorded before."""
        await self._progress.drain(ignore_errors=True)
        received = (await self._log.upload(self._upload.id)).received
        if keep:
            with suppress(StorageFull, Unavailable):  # what cannot be made durable is not kept
                received = await self._writer.sync()
        reason = str(error) or str(Stopping())
        command = UploadCommand(
            self._upload.id,
            partial(Upload.interrupt_transfer, received=received, reason=reason),
            accepts_cached=True,
        )
        await execute(self._log, command, self._options.context())
