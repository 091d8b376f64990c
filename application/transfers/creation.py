"""Files that announce themselves: registered first, or stored first where they come whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from uuid import UUID

import msgspec
from msgspec.structs import replace

from application.commands import (
    CreateStandaloneUpload,
    MarkPartialConcatenated,
    ProgressTransfer,
    RegisterPartialUpload,
    RegisterUpload,
)
from application.errors import ApplicationError, NotFound, OutcomeUnknown, TooManyConflicts
from application.handlers.execute import CommandResult, execute
from application.handlers.uploads import (
    RegisteredUpload,
    create_standalone_upload,
    register_partial_upload,
    register_upload,
)
from application.ports.blobs import BlobMissing
from application.transfers.errors import BodyTooLarge, PartialUploadMissing
from application.transfers.locks import single_request_blob_name
from application.transfers.transfers import Actor, Transfers
from domain.errors import CommandRejected, InvalidState, ValidationFailed
from domain.file import FileDeclaration, validate_declaration
from domain.ids import is_partial_upload, partial_upload_id_for, upload_id_for
from domain.retry import RetryPolicy
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING, UploadState


class StandaloneTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A file without a batch gets a sealed one of its own, with this id."""

    batch: UUID
    owner: str
    pipeline: str = "default"
    retry_policy: RetryPolicy = RetryPolicy()


class BatchTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A file that joins an open batch, or finds its declaration there."""

    batch: UUID


class UploadCreator:
    """New files. A small one that comes whole costs one fdatasync and one append."""

    def __init__(self, transfers: Transfers, new_id: Callable[[], UUID]) -> None:
        self._transfers = transfers
        self._new_id = new_id

    async def announce(
        self, place: StandaloneTarget | BatchTarget, file: FileDeclaration, speaker: Actor
    ) -> RegisteredUpload:
        """Registers a file whose bytes are to come.

        Raises ValidationFailed, TooLong, StorageFull, NotFound, InvalidState, TooManyConflicts,
        Unavailable.
        """
        await self.admit(place, file)
        registered = await self._register(place, file, speaker)
        upload = registered.upload
        if upload.size is None and file.size is not None and upload.state in INCOMING:
            upload = await self._transfers.declare(upload.id, file.size, speaker)
        return RegisteredUpload(upload, registered.created, registered.position)

    async def arrive(
        self,
        place: StandaloneTarget | BatchTarget,
        file: FileDeclaration,
        read: Callable[[], Awaitable[bytes]],
        speaker: Actor,
    ) -> RegisteredUpload:
        """Reads and stores a whole file, then records that it was registered and received.

        Where the batch knows the path, the bytes go to the upload that is there, unless it has
        bytes already: then these are dropped. Raises what `announce` and `read` raise.
        """
        await self.admit(place, file)
        async with self._transfers.quotas.transferring(await self.owner_of(place)):
            content = await read()
        upload = upload_id_for(place.batch, file.path, self._transfers.log.id_secret)
        chosen = single_request_blob_name(upload, self._new_id())
        blob = (await self._transfers.blobs.put_many({chosen: content}))[chosen]
        try:
            return await self.record(place, file, len(content), blob, speaker)
        except (CommandRejected, ApplicationError) as error:
            # Once it is certain that nothing was recorded, nobody will ever ask for this blob.
            if not isinstance(error, OutcomeUnknown):
                await self._transfers.blobs.delete(blob)
            raise

    async def record(
        self,
        place: StandaloneTarget | BatchTarget,
        file: FileDeclaration,
        size: int,
        blob: str,
        speaker: Actor,
    ) -> RegisteredUpload:
        """Records that a file whose bytes are stored under `blob` was registered and received.

        Where the path is known and its upload has bytes already, those of `blob` are deleted.
        Raises ValidationFailed, NotFound, InvalidState, TooManyConflicts, Unavailable,
        OutcomeUnknown.
        """
        registered = await self._register(place, file, speaker, size, blob)
        if registered.created:
            return registered
        return await self._hand_over(registered, size, blob, speaker)

    async def owner_of(self, place: StandaloneTarget | BatchTarget) -> str:
        """Raises NotFound, Unavailable."""
        if isinstance(place, StandaloneTarget):
            return place.owner
        return (await self._transfers.log.batch(place.batch)).owner

    async def admit(self, place: StandaloneTarget | BatchTarget, file: FileDeclaration) -> None:
        """Before any byte of the file is read.

        Raises ValidationFailed, TooLong, StorageFull, BatchFull, QuotaExceeded, NotFound,
        Unavailable.
        """
        await self.examine(file)
        quotas = self._transfers.quotas
        if quotas.unlimited or await self._knows(place, file):
            return
        batch = place.batch if isinstance(place, BatchTarget) else None
        await quotas.admit(await self.owner_of(place), batch, file.size or 0)

    async def examine(self, file: FileDeclaration) -> None:
        """The same but for quotas. Raises ValidationFailed, TooLong, StorageFull, Unavailable."""
        if faults := tuple(validate_declaration(file)):
            raise ValidationFailed(*faults)
        if (file.size or 0) > self._transfers.limits.max_file_size:
            raise BodyTooLarge(self._transfers.limits.max_file_size)
        await self._transfers.room.require(file.size or 0)

    async def _knows(self, place: StandaloneTarget | BatchTarget, file: FileDeclaration) -> bool:
        """Whether the file was declared before, and is counted already."""
        upload = upload_id_for(place.batch, file.path, self._transfers.log.id_secret)
        return isinstance(place, BatchTarget) and bool(await self._transfers.log.versions([upload]))

    async def _register(
        self,
        place: StandaloneTarget | BatchTarget,
        file: FileDeclaration,
        speaker: Actor,
        received: int | None = None,
        blob: str | None = None,
    ) -> RegisteredUpload:
        log, context = self._transfers.log, self._transfers.context(speaker)
        if isinstance(place, BatchTarget):
            joining = RegisterUpload(batch=place.batch, file=file, received=received, blob=blob)
            return await register_upload(log, joining, context)
        alone = CreateStandaloneUpload(
            id=place.batch,
            owner=place.owner,
            file=file,
            pipeline=place.pipeline,
            retry_policy=place.retry_policy,
            received=received,
            blob=blob,
        )
        return await create_standalone_upload(log, alone, context)

    async def _hand_over(
        self, known: RegisteredUpload, size: int, blob: str, speaker: Actor
    ) -> RegisteredUpload:
        """The bytes for an upload that was declared before, if it waits for its first one."""
        async with self._transfers.turns.take(known.upload.id):
            self._transfers.log.forget(known.upload.id)
            upload = await self._transfers.log.upload(known.upload.id)
            if upload.state is not UploadState.REGISTERED:
                await self._transfers.blobs.delete(blob)
                return RegisteredUpload(upload, False, 0)
            command = ProgressTransfer(upload=upload.id, received=size, blob=blob, complete=True)
            context = self._transfers.context(speaker)
            decided = await execute(self._transfers.log, command, context)
            return RegisteredUpload(decided.aggregate, False, decided.position)


# A file that came in parts, side by side: announced, received like uploads, joined into one.


class PartialUploads:
    """Parts of uploads. Their bytes come and go by `Transfers`, as those of uploads do."""

    def __init__(
        self, transfers: Transfers, arrivals: UploadCreator, new_id: Callable[[], UUID]
    ) -> None:
        self._transfers = transfers
        self._arrivals = arrivals
        self._new_id = new_id

    async def announce(
        self, place: StandaloneTarget | BatchTarget, file: FileDeclaration, speaker: Actor
    ) -> CommandResult[Upload]:
        """Registers a part of `file.size` bytes. Raises what `Arrivals.announce` raises."""
        await self._arrivals.examine(file)
        owner = await self._arrivals.owner_of(place)
        # The upload is counted when it is joined; a part only has to leave room for itself.
        await self._transfers.quotas.require(owner, place.batch, file.size or 0)
        command = RegisterPartialUpload(
            id=partial_upload_id_for(self._new_id()),
            owner=owner,
            batch=place.batch if isinstance(place, BatchTarget) else None,
            size=file.size,
            metadata=file.metadata,
        )
        context = self._transfers.context(speaker)
        return await register_partial_upload(self._transfers.log, command, context)

    async def join(
        self,
        place: StandaloneTarget | BatchTarget,
        file: FileDeclaration,
        parts: Sequence[UUID],
        speaker: Actor,
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
            raise BodyTooLarge(self._transfers.limits.max_file_size)
        file = replace(file, size=size)
        await self._arrivals.admit(place, file)
        blob = single_request_blob_name(upload, self._new_id())
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

    async def _whole_part(self, id: UUID, place: StandaloneTarget | BatchTarget) -> Upload:
        """The part, if it is all here, and of the same owner and batch as the place."""
        owner, log = await self._arrivals.owner_of(place), self._transfers.log
        origin = await log.origin(id)
        # Before anything is loaded: a foreign part costs what an absent one does.
        if origin is None or origin.owner != owner or not is_partial_upload(id):
            raise PartialUploadMissing(id)
        log.forget(id)
        try:
            part = await log.upload(id)
        except NotFound:
            raise PartialUploadMissing(id) from None
        batch = place.batch if isinstance(place, BatchTarget) else id
        if part.batch != batch or part.state not in (UploadState.RECEIVED, UploadState.COMPLETED):
            raise PartialUploadMissing(id)
        return part

    async def _joined_before(self, upload: UUID, pieces: Sequence[Upload]) -> Upload:
        """The upload that these parts went into, all of them."""
        gone = next(piece for piece in pieces if piece.state is UploadState.COMPLETED)
        try:
            known = await self._transfers.log.upload(upload)
        except NotFound:
            raise PartialUploadMissing(gone.id) from None
        if known.received != sum(piece.received for piece in pieces):
            raise PartialUploadMissing(gone.id)
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
                    raise PartialUploadMissing(piece.id)
            await writer.sync()
            await blobs.finish(blob, writer.size)
        except BlobMissing as missing:
            raise TooManyConflicts(f"{missing}; try again") from missing
        finally:
            await writer.close()

    async def _free(self, pieces: Sequence[Upload], speaker: Actor) -> None:
        """Parts that were joined; what a crash leaves of this, the sweeper finds."""
        for piece in pieces:
            context = self._transfers.context(speaker)
            await execute(self._transfers.log, MarkPartialConcatenated(upload=piece.id), context)
            await self._transfers.free(piece)
