"""A large file among others in one request: its end, good or bad, is not that of the request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import UUID

from application.commands import CancelUpload
from application.errors import NotFound
from application.handlers.uploads import FileResult, RegisteredUpload, RejectedFile
from application.transfer.arriving import Arrivals, Joining
from application.transfer.errors import (
    BatchFull,
    NotIncoming,
    OffsetMismatch,
    Overtaken,
    QuotaExceeded,
    TooLong,
)
from application.transfer.transfers import Incoming, Speaker, Transfers
from domain.errors import CommandRejected
from domain.file import FileDeclaration
from domain.ids import upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING


class OneOfMany:
    """Takes single files of a request in, from where their uploads stand.

    Raises Ended where the sender is gone or silent, StorageFull, TooManyConflicts, Unavailable,
    OutcomeUnknown: what ends the whole request. Anything else is the answer for the file.
    """

    def __init__(self, transfers: Transfers, arrivals: Arrivals, speaker: Speaker) -> None:
        self._transfers = transfers
        self._arrivals = arrivals
        self._speaker = speaker
        self.position = 0  # of what was recorded last

    async def stream(
        self, batch: UUID, file: FileDeclaration, chunks: AsyncIterator[bytes]
    ) -> FileResult:
        """Registers the file, then takes its bytes in as they come; one known goes on."""
        try:
            upload = (await self._announce(batch, file)).upload
        except (
            CommandRejected
        ) as refused:  # the batch is closed, or knows the path with another size
            id = upload_id_for(batch, file.path, self._transfers.log.id_secret)
            return RejectedFile(file, "invalid_state", str(refused)).result(id)
        except (BatchFull, QuotaExceeded) as error:
            id = upload_id_for(batch, file.path, self._transfers.log.id_secret)
            return RejectedFile(file, "quota_exceeded", str(error)).result(id)
        if upload.state not in INCOMING:
            return FileResult(file.path, upload.id, "known")
        return await self.go_on(upload, chunks, size=file.size)

    async def go_on(
        self, upload: Upload, chunks: AsyncIterator[bytes], *, size: int | None
    ) -> FileResult:
        """Takes in what is missing of an upload; `chunks` are the file from its beginning."""
        incoming = Incoming(upload=upload.id, offset=upload.received, size=size, last=True)
        rest = _beyond(upload.received, chunks)
        try:
            decided = await self._transfers.receive(incoming, rest, self._speaker)
        except TooLong as error:
            await self._call_off(upload, str(error))
            return _refused(upload, "too_large", str(error))
        except (CommandRejected, NotFound, NotIncoming, OffsetMismatch, Overtaken) as error:
            return _refused(upload, "invalid_state", str(error))
        self.position, received = max(self.position, decided.position), decided.aggregate
        if received.state in INCOMING:
            message = f"ended after {received.received} of {received.size} bytes"
            return _refused(upload, "too_short", message)
        return FileResult(upload.path, upload.id, "received")

    async def _announce(self, batch: UUID, file: FileDeclaration) -> RegisteredUpload:
        return await self._arrivals.announce(Joining(batch=batch), file, self._speaker)

    async def _call_off(self, upload: Upload, reason: str) -> None:
        """An upload that can never be whole must not keep its batch waiting."""
        command = CancelUpload(upload=upload.id, reason=reason)
        with suppress(CommandRejected):  # somebody else ended it meanwhile
            await self._transfers.cancel(command, self._transfers.context(self._speaker))


def _refused(upload: Upload, code: str, message: str) -> FileResult:
    return RejectedFile(FileDeclaration(path=upload.path), code, message).result(upload.id)


async def _beyond(offset: int, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes from `offset` on."""
    skip = offset
    async for chunk in chunks:
        if len(chunk) > skip:
            yield chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))
