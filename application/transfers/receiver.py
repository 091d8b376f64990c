"""Progress of one transfer, made durable and recorded while more of it arrives, or nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from hashlib import md5, sha1, sha256, sha512
from hmac import compare_digest
from typing import Protocol, TypeAlias

import msgspec
from google_crc32c import Checksum as Crc32c

from application.commands import InterruptTransfer, ProgressTransfer
from application.errors import StorageFull, Unavailable
from application.handlers.execute import CommandContext, CommandResult, execute
from application.ports.blobs import BlobStore, BlobWriter
from application.ports.event_log import EventLog
from application.transfers.errors import (
    BodyTooLarge,
    ChecksumMismatch,
    Stopping,
    TransferInterrupted,
)
from application.transfers.locks import UploadLock
from domain.upload.aggregate import Upload


class ProgressRecorder:
    """One checkpoint at a time, and none without new bytes.

    `record` makes durable and records what it can, and says whether bytes are left of which that
    is not true yet. `pace` gives the seconds that bytes wait for it. A checkpoint that fails, such
    as for a cancelled upload, ends the turn.
    """

    def __init__(
        self, turn: UploadLock, pace: Callable[[], float], record: Callable[[], Awaitable[bool]]
    ) -> None:
        self._turn = turn
        self._pace = pace
        self._record = record
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[bool] | None = None
        self._over = False

    def due(self) -> None:
        """Bytes were written: they are on record soon, whether or not others follow them."""
        if self._timer is None and not self._over:
            self._timer = self._loop.call_later(self._pace(), self._begin)

    async def settled(self, *, quietly: bool = False) -> None:
        """Begins no more, waits for the one that is under way, and raises what it met."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})
            if not quietly:
                self._task.result()

    def _begin(self) -> None:
        self._timer = None
        if self._task is not None:  # the disk is slow, and the last one is still under way
            self.due()
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
                self._turn.end(error)
            return
        if not self._over:
            self._task = None
        if task.result():
            self.due()


# Checksums that senders give along with bytes, computed while the bytes arrive.


class Hasher(Protocol):
    """A checksum of what it was fed so far."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


# md5 and sha1 tell damage from none; nobody relies on them against malice.
ALGORITHMS: dict[str, Callable[[], Hasher]] = {
    "sha1": lambda: sha1(usedforsecurity=False),
    "sha256": sha256,
    "sha512": sha512,
    "crc32c": Crc32c,
    "md5": lambda: md5(usedforsecurity=False),
}
"""By the names that the tus protocol has for them."""


class Checksum(msgspec.Struct, frozen=True):
    """What the bytes of one body must come to; `algorithm` is a key of ALGORITHMS."""

    algorithm: str
    digest: bytes

    def verify(self, content: bytes) -> None:
        """Raises ChecksumMismatch unless the content is what its sender meant."""
        check = ChecksumVerifier(self)
        check.update(content)
        check.verify()


class ChecksumVerifier:
    """A checksum while its body arrives."""

    def __init__(self, expected: Checksum) -> None:
        self._expected = expected
        self._running = ALGORITHMS[expected.algorithm]()
        self.update = self._running.update

    def verify(self) -> None:
        """Raises ChecksumMismatch unless every byte so far is what its sender meant."""
        if not compare_digest(self._running.digest(), self._expected.digest):
            raise ChecksumMismatch(self._expected.algorithm)


# One request's bytes on their way into a blob: stored, made durable, recorded, in this order.

LAST_LOOKS = 4  # at what arrived, by a transfer that was ended

ReadBuffered: TypeAlias = Callable[[], Awaitable[bytes]]
"""What of a body arrived and was not taken yet; its sender is not waited for."""


async def no_buffered_bytes() -> bytes:
    """`Here`, for a body that was taken out of something larger: that one holds the rest."""
    return b""


class ReceiveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one body is held to.

    `limit` is the size of the upload, or the largest allowed while it is unknown. `last` says
    that the end of the body is the end of the file. `pace` gives the seconds until progress is
    recorded next. With a `checksum` the body counts as a whole, once it was found right.
    """

    limit: int
    last: bool
    pace: Callable[[], float]
    context: Callable[[], CommandContext]
    checksum: Checksum | None = None


class BodyReceiver:
    """Takes one body in. Memory: the chunk at hand, whatever the size of the file."""

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        writer: BlobWriter,
        upload: Upload,
        blob: str,
        turn: UploadLock,
        terms: ReceiveOptions,
    ) -> None:
        self._log = log
        self._blobs = blobs
        self._writer = writer
        self._upload = upload
        self._blob = blob
        self._turn = turn
        self._terms = terms
        self._check = None if terms.checksum is None else ChecksumVerifier(terms.checksum)
        self._checkpoints = ProgressRecorder(turn, terms.pace, self._record_progress)
        self._position = 0  # of what was recorded last

    async def run(
        self,
        chunks: AsyncIterator[bytes],
        here: ReadBuffered = no_buffered_bytes,
        ahead: bytes = b"",
    ) -> CommandResult[Upload]:
        """The upload after the body; raises what ended it early, its bytes being recorded.

        `ahead` was taken from the body before. Raises Ended, TooLong, ChecksumMismatch,
        StorageFull, Refused, NotFound, TooManyConflicts, Unavailable.
        """
        try:
            await self._take_in(chunks, here, ahead)
            await self._checkpoints.settled()
            self._verify()
        except (BodyTooLarge, ChecksumMismatch) as error:
            await self._interrupted(error, keep=False)
            raise
        except (TransferInterrupted, StorageFull, asyncio.CancelledError) as error:
            sound = self._sound()
            if isinstance(error, TransferInterrupted) and self._whole() and sound:
                return await self._complete()
            await self._interrupted(error, keep=sound)
            raise
        finally:
            await self._checkpoints.settled(quietly=True)
        if self._whole() or self._terms.last:
            return await self._complete()
        return await self._progressed()

    async def _take_in(
        self, chunks: AsyncIterator[bytes], here: ReadBuffered, ahead: bytes
    ) -> None:
        """Every chunk to the store. The hot path.

        Whoever ends a transfer wants its bytes to count: also those that are here already, and
        that it had no time for.
        """
        try:
            if ahead:
                await self._add(ahead)
            while (chunk := await self._turn.next(chunks)) is not None:
                await self._add(chunk)
        except TransferInterrupted:
            for _ in range(LAST_LOOKS):
                if not (rest := await here()):
                    break
                await self._add(rest)
            raise

    async def _add(self, chunk: bytes) -> None:
        if self._writer.size + len(chunk) > self._terms.limit:
            raise BodyTooLarge(self._terms.limit)
        await self._writer.write(chunk)
        if self._check is None:
            self._checkpoints.due()
        else:  # nothing of the body counts before its last byte was checked
            self._check.update(chunk)

    async def _record_progress(self) -> bool:
        """Bytes so far, made durable and recorded; whether there are others by then.

        The last byte allowed is not among them: whether the body ends there nobody knows yet.
        """
        durable = await self._writer.checkpoint()
        await self._record(min(durable, self._terms.limit - 1))
        return durable < self._writer.size

    def _whole(self) -> bool:
        """Whether every declared byte is here; of an unknown size nobody can tell."""
        return self._upload.size is not None and self._writer.size == self._upload.size

    def _verify(self) -> None:
        if self._check is not None:
            self._check.verify()

    def _sound(self) -> bool:
        """Whether what arrived is all that its checksum was made of, if there is one."""
        try:
            self._verify()
        except ChecksumMismatch:
            return False
        return True

    async def _complete(self) -> CommandResult[Upload]:
        await self._checkpoints.settled()
        size = self._writer.size
        await self._blobs.finish(self._blob, size)
        return await self._record(size, complete=True)

    async def _progressed(self) -> CommandResult[Upload]:
        return await self._record(await self._writer.sync())

    async def _record(self, received: int, *, complete: bool = False) -> CommandResult[Upload]:
        command = ProgressTransfer(
            upload=self._upload.id, received=received, blob=self._blob, complete=complete
        )
        decided = await execute(self._log, command, self._terms.context())
        self._position = max(self._position, decided.position)
        return CommandResult(decided.aggregate, self._position)

    async def _interrupted(self, error: BaseException, *, keep: bool) -> None:
        """Records how far the bytes are; without `keep`, no further than was recorded before."""
        await self._checkpoints.settled(quietly=True)
        received = (await self._log.upload(self._upload.id)).received
        if keep:
            with suppress(StorageFull, Unavailable):  # what cannot be made durable is not kept
                received = await self._writer.sync()
        reason = str(error) or str(Stopping())
        command = InterruptTransfer(upload=self._upload.id, received=received, reason=reason)
        await execute(self._log, command, self._terms.context())
