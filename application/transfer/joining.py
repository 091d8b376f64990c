"""A file that came in parts, side by side: announced, received like uploads, joined into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from uuid import UUID

from msgspec.structs import replace

from application.commands import MarkPartialConcatenated, RegisterPartialUpload
from application.errors import ApplicationError, NotFound, OutcomeUnknown, TooManyConflicts
from application.handlers.execute import CommandResult, execute
from application.handlers.uploads import RegisteredUpload, register_partial_upload
from application.ports.blobs import BlobMissing
from application.transfer.arriving import Alone, Arrivals, Joining
from application.transfer.errors import PartMissing, TooLong
from application.transfer.names import blob_of_whole
from application.transfer.transfers import Speaker, Transfers
from domain.errors import CommandRejected, InvalidState
from domain.file import FileDeclaration
from domain.ids import is_partial_upload, partial_upload_id_for, upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING, UploadState


class Parts:
    """Parts of uploads. Their bytes come and go by `Transfers`, as those of uploads do."""

    def __init__(
        self, transfers: Transfers, arrivals: Arrivals, new_id: Callable[[], UUID]
    ) -> None:
        self._transfers = transfers
        self._arrivals = arrivals
        self._new_id = new_id

    async def announce(
        self, place: Alone | Joining, file: FileDeclaration, speaker: Speaker
    ) -> CommandResult[Upload]:
        """Registers a part of `file.size` bytes. Raises what `Arrivals.announce` raises."""
        await self._arrivals.examine(file)
        owner = await self._arrivals.owner_of(place)
        # The upload is counted when it is joined; a part only has to leave room for itself.
        await self._transfers.quotas.require(owner, place.batch, file.size or 0)
        command = RegisterPartialUpload(
            id=partial_upload_id_for(self._new_id()),
            owner=owner,
            batch=place.batch if isinstance(place, Joining) else None,
            size=file.size,
            metadata=file.metadata,
        )
        context = self._transfers.context(speaker)
        return await register_partial_upload(self._transfers.log, command, context)

    async def join(
        self,
        place: Alone | Joining,
        file: FileDeclaration,
        parts: Sequence[UUID],
        speaker: Speaker,
    ) -> RegisteredUpload:
        """Makes one upload of the parts, in their order, and frees them.

        Joining the same parts into the same place again finds the upload that is there: a crash
        at any point is made good by repeating the request. Raises PartMissing, and what
        `Arrivals.arrive` raises.
        """
        pieces = [await self._whole_part(id, place) for id in parts]
        upload = upload_id_for(place.batch, file.path, self._transfers.log.id_secret)
        if any(piece.state is UploadState.COMPLETED for piece in pieces):
            return RegisteredUpload(await self._joined_before(upload, pieces), False, 0)
        size = sum(piece.received for piece in pieces)
        if size > self._transfers.limits.max_file_size:
            raise TooLong(self._transfers.limits.max_file_size)
        file = replace(file, size=size)
        await self._arrivals.admit(place, file)
        blob = blob_of_whole(upload, self._new_id())
        try:
            await self._copy(pieces, blob)
            registered = await self._arrivals.record(place, file, size, blob, speaker)
            if registered.upload.state in INCOMING:
                raise InvalidState(f"{file.path} is being received another way")
        except (CommandRejected, ApplicationError) as error:
            if not isinstance(error, OutcomeUnknown):
                await self._transfers.blobs.delete(blob)
            raise
        await self._free(pieces, speaker)
        return registered

    async def _whole_part(self, id: UUID, place: Alone | Joining) -> Upload:
        """The part, if it is all here, and of the same owner and batch as the place."""
        owner, log = await self._arrivals.owner_of(place), self._transfers.log
        origin = await log.origin(id)
        # Before anything is loaded: a foreign part costs what an absent one does.
        if origin is None or origin.owner != owner or not is_partial_upload(id):
            raise PartMissing(id)
        log.forget(id)
        try:
            part = await log.upload(id)
        except NotFound:
            raise PartMissing(id) from None
        batch = place.batch if isinstance(place, Joining) else id
        if part.batch != batch or part.state not in (UploadState.RECEIVED, UploadState.COMPLETED):
            raise PartMissing(id)
        return part

    async def _joined_before(self, upload: UUID, pieces: Sequence[Upload]) -> Upload:
        """The upload that these parts went into, all of them."""
        gone = next(piece for piece in pieces if piece.state is UploadState.COMPLETED)
        try:
            known = await self._transfers.log.upload(upload)
        except NotFound:
            raise PartMissing(gone.id) from None
        if known.received != sum(piece.received for piece in pieces):
            raise PartMissing(gone.id)
        return known

    async def _copy(self, pieces: Sequence[Upload], blob: str) -> None:
        """Raises TooManyConflicts where the parts are being freed: another request joined them."""
        blobs = self._transfers.blobs
        writer = await blobs.append(blob, 0)
        try:
            for piece in pieces:
                end = writer.size + piece.received
                chunks = blobs.read(str(piece.blob), 0, piece.received)
                async with aclosing(chunks):  # type: ignore[type-var]
                    async for chunk in chunks:
                        await writer.write(chunk)
                if writer.size != end:
                    raise PartMissing(piece.id)
            await writer.sync()
            await blobs.finish(blob, writer.size)
        except BlobMissing as missing:
            raise TooManyConflicts(f"{missing}; try again") from missing
        finally:
            await writer.close()

    async def _free(self, pieces: Sequence[Upload], speaker: Speaker) -> None:
        """Parts that were joined; what a crash leaves of this, the sweeper finds."""
        for piece in pieces:
            context = self._transfers.context(speaker)
            await execute(self._transfers.log, MarkPartialConcatenated(upload=piece.id), context)
            await self._transfers.free(piece)
