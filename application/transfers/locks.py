"""An upload's blob, opened for one writer alone: in this process and in all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

from application.commands import RecordDataLoss
from application.errors import TooManyConflicts
from application.handlers.execute import CommandContext, execute
from application.ports.blobs import BlobBusy, BlobStore, BlobTooShort, BlobWriter
from application.ports.event_log import EventLog
from application.ports.limits import RemotePreemption
from application.transfers.errors import NotAcceptingBytes, Preempted, TransferInterrupted
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING

# What the blobs of uploads are called, so that whoever finds one knows whose it is.

FOLDER = "uploads"


def upload_blob_name(upload: UUID) -> str:
    """The blob that the transfers of an upload append to."""
    return f"{FOLDER}/{upload}"


def single_request_blob_name(upload: UUID, token: UUID) -> str:
    """The blob of a file that came whole with its registration.

    Two senders may register the same path at once, each with bytes of its own: the token
    keeps them apart, and the log decides whose is the upload's.
    """
    return f"{FOLDER}/{upload}.{token.hex}"


def upload_id_from_blob_name(blob: str) -> UUID | None:
    """The upload whose bytes a blob of this name holds; None for a blob of another kind."""
    folder, _, file = blob.partition("/")
    if folder != FOLDER:
        return None
    try:
        return UUID(file.partition(".")[0])
    except ValueError:
        return None


PATIENCE = 5.0  # seconds for another process to let go of an upload
GLANCE = 0.003  # seconds between two looks whether it has
ASK_AGAIN = 0.25  # seconds after which another process is asked again


class BlobWriterLeases:
    """Opens blobs where the log says they end, and settles what the two disagree about."""

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        elsewhere: RemotePreemption,
        clock: Callable[[], float],
    ) -> None:
        self._log = log
        self._blobs = blobs
        self._elsewhere = elsewhere
        self._clock = clock

    @asynccontextmanager
    async def claimed(
        self, id: UUID, context: Callable[[], CommandContext]
    ) -> AsyncIterator[tuple[Upload, BlobWriter]]:
        """The upload, and its blob opened for us alone at the recorded offset.

        The recorded offset is the truth. Bytes beyond it were never acknowledged, and a crash
        may have left anything in their place: the first write drops them. Where there are fewer,
        that is recorded as a loss and the upload goes back to what there is.
        """
        asking = _PreemptionRequest(self._elsewhere, id, self._clock)
        while True:
            upload = await self._log.upload(id)
            if upload.state not in INCOMING:
                raise NotAcceptingBytes(upload.state)
            try:
                writer = await self._blobs.append(upload_blob_name(id), upload.received)
            except BlobTooShort as short:
                loss = RecordDataLoss(upload=id, stored=short.stored)
                await execute(self._log, loss, context())
                continue
            except BlobBusy:
                await asking.wait()
                self._log.forget(id)
                continue
            try:
                # Only now that nobody else can write is what the log says going to stay.
                self._log.forget(id)
                current = await self._log.upload(id)
                if current.received == upload.received and current.state in INCOMING:
                    yield current, writer
                    return
            finally:
                await writer.close()


class _PreemptionRequest:
    """The other processes are asked to let go of an upload, and given time for it."""

    def __init__(
        self, elsewhere: RemotePreemption, upload: UUID, clock: Callable[[], float]
    ) -> None:
        self._elsewhere = elsewhere
        self._upload = upload
        self._clock = clock
        self._deadline = clock() + PATIENCE
        self._again: float | None = None

    async def wait(self) -> None:
        """Until it is time to look again. Raises TooManyConflicts, Unavailable."""
        now = self._clock()
        if now > self._deadline:
            raise TooManyConflicts(f"another process is still receiving {self._upload}; try again")
        if self._again is None or now >= self._again:
            await self._elsewhere.stop(self._upload)
            self._again = self._clock() + ASK_AGAIN
        await asyncio.sleep(GLANCE)


# One transfer at a time for each upload, and the newest request wins.


class UploadLock:
    """The right of one task to work on one upload, until somebody newer wants it."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ending: Exception | None = None
        self._waiting: asyncio.Task[object] | None = None

    @property
    def ended(self) -> bool:
        """Whether somebody newer wants the upload, or another reason to let it go came up."""
        return self._ending is not None

    def end(self, reason: Exception) -> None:
        """Makes the holder's wait for its sender raise this, now or when it next waits."""
        if self._ending is not None:
            return
        self._ending = reason
        if self._waiting is not None:
            self._waiting.cancel()

    def go_on(self) -> None:
        """Raises what the turn was ended with, if it was."""
        if self._ending is not None:
            raise self._ending

    async def next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """The sender's next chunk, None at the end; raises what the turn was ended with.

        The holder is only ever interrupted in here: never while it writes, syncs or records.
        """
        self.go_on()
        task = asyncio.current_task()
        self._waiting = task
        try:
            return await anext(chunks, None)
        except asyncio.CancelledError:
            if self._ending is None or task is None or task.uncancel() > 0:
                raise
            raise self._ending from None
        finally:
            self._waiting = None


class UploadLocks:
    """Hands out turns; an upload's turn is taken from its holder by whoever asks next."""

    def __init__(self) -> None:
        self._newest: dict[UUID, UploadLock] = {}
        self._closed: TransferInterrupted | None = None

    def __len__(self) -> int:
        return len(self._newest)

    @asynccontextmanager
    async def take(self, upload: UUID, *, late: bool = False) -> AsyncIterator[UploadLock]:
        """Ends the turn before, waits until its bytes are committed, and holds the upload.

        Raises Overtaken where somebody newer asked while this one waited; with `late` the turn is
        held all the same, for as long as the holder needs to put down what it has.
        """
        if self._closed is not None:
            raise self._closed
        mine, before = UploadLock(), self._newest.get(upload)
        self._newest[upload] = mine
        try:
            if before is not None:
                before.end(Preempted())
                await asyncio.shield(before.over)
            if not late:
                mine.go_on()
            yield mine
        finally:
            self._leave(upload, mine, before)

    def stop(self, upload: UUID) -> None:
        """Ends the transfer of this upload, if there is one here."""
        if turn := self._newest.get(upload):
            turn.end(Preempted())

    def refuse(self, reason: TransferInterrupted) -> None:
        """Ends every transfer that is yet to begin."""
        self._closed = reason

    def close(self, reason: TransferInterrupted) -> None:
        """Ends every transfer, those that are yet to begin included."""
        self.refuse(reason)
        for turn in self._newest.values():
            turn.end(reason)

    def _leave(self, upload: UUID, mine: UploadLock, before: UploadLock | None) -> None:
        if self._newest.get(upload) is mine and (before is None or before.over.done()):
            del self._newest[upload]
        if before is None or before.over.done():
            mine.over.set_result(None)
        else:  # cancelled while waiting: whoever comes next still has to wait for the one before
            before.over.add_done_callback(lambda _: self._leave(upload, mine, None))
