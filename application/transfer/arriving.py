"""Files that announce themselves: registered first, or stored first where they come whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

import msgspec

from application.commands import CreateStandaloneUpload, ProgressTransfer, RegisterUpload
from application.errors import ApplicationError, OutcomeUnknown
from application.handlers.execute import execute
from application.handlers.uploads import RegisteredUpload, create_standalone_upload, register_upload
from application.transfer.errors import TooLong
from application.transfer.names import blob_of_whole
from application.transfer.transfers import Speaker, Transfers
from domain.errors import CommandRejected, ValidationFailed
from domain.file import FileDeclaration, validate_declaration
from domain.ids import upload_id_for
from domain.retry import RetryPolicy
from domain.upload.state import INCOMING, UploadState


class Alone(msgspec.Struct, frozen=True, kw_only=True):
    """A file without a batch gets a sealed one of its own, with this id."""

    batch: UUID
    owner: str
    pipeline: str = "default"
    retry_policy: RetryPolicy = RetryPolicy()


class Joining(msgspec.Struct, frozen=True, kw_only=True):
    """A file that joins an open batch, or finds its declaration there."""

    batch: UUID


class Arrivals:
    """New files. A small one that comes whole costs one fdatasync and one append."""

    def __init__(self, transfers: Transfers, new_id: Callable[[], UUID]) -> None:
        self._transfers = transfers
        self._new_id = new_id

    async def announce(
        self, place: Alone | Joining, file: FileDeclaration, speaker: Speaker
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
        place: Alone | Joining,
        file: FileDeclaration,
        read: Callable[[], Awaitable[bytes]],
        speaker: Speaker,
    ) -> RegisteredUpload:
        """Reads and stores a whole file, then records that it was registered and received.

        Where the batch knows the path, the bytes go to the upload that is there, unless it has
        bytes already: then these are dropped. Raises what `announce` and `read` raise.
        """
        await self.admit(place, file)
        async with self._transfers.quotas.transferring(await self.owner_of(place)):
            content = await read()
        upload = upload_id_for(place.batch, file.path, self._transfers.log.id_secret)
        chosen = blob_of_whole(upload, self._new_id())
        blob = (await self._transfers.blobs.put_many({chosen: content}))[chosen]
        try:
            return await self.record(place, file, len(content), blob, speaker)
        except (CommandRejected, ApplicationError) as error:
            # Once it is certain that nothing was recorded, nobody will ever ask for this blob.
            if not isinstance(error, OutcomeUnknown):
                await self._transfers.blobs.delete(blob)
            raise

    async def record(
        self, place: Alone | Joining, file: FileDeclaration, size: int, blob: str, speaker: Speaker
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

    async def owner_of(self, place: Alone | Joining) -> str:
        """Raises NotFound, Unavailable."""
        if isinstance(place, Alone):
            return place.owner
        return (await self._transfers.log.batch(place.batch)).owner

    async def admit(self, place: Alone | Joining, file: FileDeclaration) -> None:
        """Before any byte of the file is read.

        Raises ValidationFailed, TooLong, StorageFull, BatchFull, QuotaExceeded, NotFound,
        Unavailable.
        """
        await self.examine(file)
        quotas = self._transfers.quotas
        if quotas.unlimited or await self._knows(place, file):
            return
        batch = place.batch if isinstance(place, Joining) else None
        await quotas.admit(await self.owner_of(place), batch, file.size or 0)

    async def examine(self, file: FileDeclaration) -> None:
        """The same but for quotas. Raises ValidationFailed, TooLong, StorageFull, Unavailable."""
        if faults := tuple(validate_declaration(file)):
            raise ValidationFailed(*faults)
        if (file.size or 0) > self._transfers.limits.max_file_size:
            raise TooLong(self._transfers.limits.max_file_size)
        await self._transfers.room.require(file.size or 0)

    async def _knows(self, place: Alone | Joining, file: FileDeclaration) -> bool:
        """Whether the file was declared before, and is counted already."""
        upload = upload_id_for(place.batch, file.path, self._transfers.log.id_secret)
        return isinstance(place, Joining) and bool(await self._transfers.log.versions([upload]))

    async def _register(
        self,
        place: Alone | Joining,
        file: FileDeclaration,
        speaker: Speaker,
        received: int | None = None,
        blob: str | None = None,
    ) -> RegisteredUpload:
        log, context = self._transfers.log, self._transfers.context(speaker)
        if isinstance(place, Joining):
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
        self, known: RegisteredUpload, size: int, blob: str, speaker: Speaker
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
