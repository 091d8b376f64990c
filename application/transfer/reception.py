"""One request's bytes on their way into a blob: stored, made durable, recorded, in this order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from math import inf

import msgspec

from application.commands import InterruptTransfer, ProgressTransfer
from application.errors import StorageFull, Unavailable
from application.handlers.deciding import Context
from application.handlers.transfers import interrupt_transfer, progress_transfer
from application.ports.blobs import BlobStore, BlobWriter
from application.ports.event_log import EventLog
from application.transfer.checksums import Check, Checksum
from application.transfer.errors import ChecksumMismatch, Ended, Stopping, TooLong
from application.transfer.turns import Turn
from domain.upload.aggregate import Upload


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What one body is held to.

    `limit` is the size of the upload, or the largest allowed while it is unknown. `last` says
    that the end of the body is the end of the file. `pace` gives the seconds until progress is
    recorded next. With a `checksum` the body counts as a whole, once it was found right.
    """

    limit: int
    last: bool
    idle_timeout: float
    pace: Callable[[], float]
    context: Callable[[], Context]
    checksum: Checksum | None = None
    min_rate: float = 0.0


class Reception:
    """Takes one body in. Memory: the chunk at hand, whatever the size of the file."""

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        writer: BlobWriter,
        upload: Upload,
        blob: str,
        turn: Turn,
        terms: Terms,
    ) -> None:
        self._log = log
        self._blobs = blobs
        self._writer = writer
        self._upload = upload
        self._blob = blob
        self._turn = turn
        self._terms = terms
        self._check = None if terms.checksum is None else Check(terms.checksum)
        self._checkpoint: asyncio.Task[None] | None = None

    async def run(self, chunks: AsyncIterator[bytes]) -> Upload:
        """The upload after the body; raises what ended it early, its bytes being recorded.

        Raises Ended, TooLong, ChecksumMismatch, StorageFull, Refused, NotFound, Busy, Unavailable.
        """
        try:
            with self._turn.impatient(self._terms.idle_timeout, self._terms.min_rate):
                await self._take_in(chunks)
            await self._settled()
            self._verify()
        except (TooLong, ChecksumMismatch) as error:
            await self._interrupted(error, keep=False)
            raise
        except (Ended, StorageFull, asyncio.CancelledError) as error:
            sound = self._sound()
            if isinstance(error, Ended) and self._whole() and sound:
                return await self._complete()
            await self._interrupted(error, keep=sound)
            raise
        finally:
            await self._settled(quietly=True)
        if self._whole() or self._terms.last:
            return await self._complete()
        return await self._progressed()

    async def _take_in(self, chunks: AsyncIterator[bytes]) -> None:
        """Every chunk to the store, with a checkpoint every so often. The hot path."""
        loop, turn, writer = asyncio.get_running_loop(), self._turn, self._writer
        limit, due = self._terms.limit, loop.time() + self._terms.pace()
        check = self._check
        if check is not None:  # nothing of the body counts before its last byte was checked
            due = inf
        while (chunk := await turn.next(chunks)) is not None:
            if writer.size + len(chunk) > limit:
                raise TooLong(limit)
            await writer.write(chunk)
            if check is not None:
                check.update(chunk)
            if loop.time() >= due and self._checkpoint is None and writer.size < limit:
                self._checkpoint = loop.create_task(self._record_progress())
                self._checkpoint.add_done_callback(self._recorded)
                due = loop.time() + self._terms.pace()

    async def _record_progress(self) -> None:
        """Bytes so far, made durable and recorded while more of them arrive."""
        durable = await self._writer.checkpoint()
        await self._record(durable)

    def _recorded(self, checkpoint: asyncio.Task[None]) -> None:
        """A checkpoint that failed, such as for a cancelled upload, ends the transfer."""
        if self._checkpoint is checkpoint and not checkpoint.cancelled():
            error = checkpoint.exception()
            if isinstance(error, Exception):
                self._turn.end(error)
            else:
                self._checkpoint = None

    async def _settled(self, *, quietly: bool = False) -> None:
        """Waits for the checkpoint that is under way, and raises what it met."""
        if (checkpoint := self._checkpoint) is not None:
            await asyncio.wait({checkpoint})
            if not quietly:
                checkpoint.result()

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

    async def _complete(self) -> Upload:
        await self._settled()
        size = self._writer.size
        await self._blobs.finish(self._blob, size)
        return await self._record(size, complete=True)

    async def _progressed(self) -> Upload:
        return await self._record(await self._writer.sync())

    async def _record(self, received: int, *, complete: bool = False) -> Upload:
        command = ProgressTransfer(
            upload=self._upload.id, received=received, blob=self._blob, complete=complete
        )
        decided = await progress_transfer(self._log, command, self._terms.context())
        return decided.aggregate

    async def _interrupted(self, error: BaseException, *, keep: bool) -> None:
        """Records how far the bytes are; without `keep`, no further than was recorded before."""
        await self._settled(quietly=True)
        received = (await self._log.upload(self._upload.id)).received
        if keep:
            with suppress(StorageFull, Unavailable):  # what cannot be made durable is not kept
                received = await self._writer.sync()
        reason = str(error) or str(Stopping())
        command = InterruptTransfer(upload=self._upload.id, received=received, reason=reason)
        await interrupt_transfer(self._log, command, self._terms.context())
