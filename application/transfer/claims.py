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
from application.transfer.elsewhere import Elsewhere
from application.transfer.errors import NotIncoming
from application.transfer.names import blob_of
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING

PATIENCE = 5.0  # seconds for another process to let go of an upload
GLANCE = 0.003  # seconds between two looks whether it has
ASK_AGAIN = 0.25  # seconds after which another process is asked again


class Claims:
    """Opens blobs where the log says they end, and settles what the two disagree about."""

    def __init__(
        self, log: EventLog, blobs: BlobStore, elsewhere: Elsewhere, clock: Callable[[], float]
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
        asking = _Asking(self._elsewhere, id, self._clock)
        while True:
            upload = await self._log.upload(id)
            if upload.state not in INCOMING:
                raise NotIncoming(upload.state)
            try:
                writer = await self._blobs.append(blob_of(id), upload.received)
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


class _Asking:
    """The other processes are asked to let go of an upload, and given time for it."""

    def __init__(self, elsewhere: Elsewhere, upload: UUID, clock: Callable[[], float]) -> None:
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
