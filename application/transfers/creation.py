"""Creation of uploads: empty, with content, and by concatenation of partial uploads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from uuid import UUID

import msgspec
from msgspec.structs import replace

from application.commands import (
    CreateStandaloneUpload,
    RegisterPartialUpload,
    RegisterUpload,
    UploadCommand,
    record_received,
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
    """Target of a file without a batch: a sealed batch of its own, with this id."""

    batch: UUID
    owner: str
    pipeline: str = "default"
    retry_policy: RetryPolicy = RetryPolicy()


class BatchTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Target of a file in an existing batch of this owner, declared there or not."""

    batch: UUID
    owner: str


class UploadCreator:
    """Creates uploads."""

    def __init__(self, transfers: Transfers, new_id: Callable[[], UUID]) -> None:
        self._transfers = transfers
        self._new_id = new_id

    async def register(
        self, target: StandaloneTarget | BatchTarget, file: FileDeclaration, actor: Actor
    ) -> RegisteredUpload:
        """Register a file whose bytes follow later.

        Raises ValidationFailed, BodyTooLarge, StorageFull, NotFound, InvalidState,
        TooManyConflicts, Unavailable.
        """
        await self.admit(target, file)
        registered = await self._register(target, file, actor)
        upload = registered.upload
        if upload.size is None and file.size is not None and upload.state in INCOMING:
            upload = await self._transfers.declare(upload.id, file.size, actor)
        return RegisteredUpload(upload, registered.created, registered.position)

    async def create_with_content(
        self,
        target: StandaloneTarget | BatchTarget,
        file: FileDeclaration,
        read: Callable[[], Awaitable[bytes]],
        actor: Actor,
    ) -> RegisteredUpload:
        """Read and store a whole file, then record that it was registered and received.

        If the path is declared already, the bytes go to its upload, unless that one has bytes:
        then these are dropped. Raises what `register` and `read` raise.
        """
        await self.admit(target, file)
        async with self._transfers.quotas.transfer_permit(target.owner):
            content = await read()
        upload = upload_id_for(target.batch, file.path, self._transfers.log.id_secret)
        chosen = single_request_blob_name(upload, self._new_id())
        blob = (await self._transfers.blobs.put_many({chosen: content}))[chosen]
        try:
            return await self.record_stored(target, file, len(content), blob, actor)
        except (CommandRejected, ApplicationError) as error:
            # Certainly nothing was recorded, so that no event refers to this blob.
            if not isinstance(error, OutcomeUnknown):
                await self._transfers.blobs.delete(blob)
            raise

    async def record_stored(
        self,
        target: StandaloneTarget | BatchTarget,
        file: FileDeclaration,
        size: int,
        blob: str,
        actor: Actor,
    ) -> RegisteredUpload:
        """Record that a file stored as `blob` was registered and received.

        If the upload of a declared path has bytes already, `blob` is deleted.
        Raises ValidationFailed, NotFound, InvalidState, TooManyConflicts, Unavailable,
        OutcomeUnknown.
        """
        registered = await self._register(target, file, actor, size, blob)
        if registered.created:
            return registered
        return await self._store_in_declared(registered, size, blob, actor)

    async def admit(self, target: StandaloneTarget | BatchTarget, file: FileDeclaration) -> None:
        """Validate the file and check the quotas, before any byte of it is read.

        Raises ValidationFailed, BodyTooLarge, StorageFull, BatchFull, QuotaExceeded, NotFound,
        Unavailable.
        """
        await self.validate(file)
        quotas = self._transfers.quotas
        if quotas.unlimited or await self._is_declared(target, file):
            return
        batch = target.batch if isinstance(target, BatchTarget) else None
        await quotas.admit(target.owner, batch, file.size or 0)

    async def validate(self, file: FileDeclaration) -> None:
        """Validate the file. Raises ValidationFailed, BodyTooLarge, StorageFull, Unavailable."""
        if faults := tuple(validate_declaration(file)):
            raise ValidationFailed(*faults)
        if (file.size or 0) > self._transfers.limits.max_file_size:
            raise BodyTooLarge(self._transfers.limits.max_file_size)
        await self._transfers.free_space.require(file.size or 0)

    async def _is_declared(
        self, target: StandaloneTarget | BatchTarget, file: FileDeclaration
    ) -> bool:
        """Return whether the file was declared before, and is counted by the quotas already."""
        upload = upload_id_for(target.batch, file.path, self._transfers.log.id_secret)
        return isinstance(target, BatchTarget) and bool(
            await self._transfers.log.versions([upload])
        )

    async def _register(
        self,
        target: StandaloneTarget | BatchTarget,
        file: FileDeclaration,
        actor: Actor,
        received: int | None = None,
        blob: str | None = None,
    ) -> RegisteredUpload:
        log, context = self._transfers.log, self._transfers.context(actor)
        if isinstance(target, BatchTarget):
            joining = RegisterUpload(batch=target.batch, file=file, received=received, blob=blob)
            return await register_upload(log, joining, context)
        alone = CreateStandaloneUpload(
            id=target.batch,
            owner=target.owner,
            file=file,
            pipeline=target.pipeline,
            retry_policy=target.retry_policy,
            received=received,
            blob=blob,
        )
        return await create_standalone_upload(log, alone, context)

    async def _store_in_declared(
        self, known: RegisteredUpload, size: int, blob: str, actor: Actor
    ) -> RegisteredUpload:
        """Give the stored bytes to a declared upload that has none yet; else delete them."""
        async with self._transfers.upload_locks.acquire(known.upload.id):
            self._transfers.log.forget(known.upload.id)
            upload = await self._transfers.log.upload(known.upload.id)
            if upload.state is not UploadState.REGISTERED:
                await self._transfers.blobs.delete(blob)
                return RegisteredUpload(upload, False, 0)
            command = UploadCommand(
                upload.id,
                partial(record_received, received=size, blob=blob, complete=True),
                accepts_cached=True,
            )
            context = self._transfers.context(actor)
            decided = await execute(self._transfers.log, command, context)
            return RegisteredUpload(decided.aggregate, False, decided.position)


class PartialUploads:
    """Partial uploads of the tus concatenation extension. `Transfers` receives their bytes."""

    def __init__(
        self, transfers: Transfers, creator: UploadCreator, new_id: Callable[[], UUID]
    ) -> None:
        self._transfers = transfers
        self._creator = creator
        self._new_id = new_id

    async def register(
        self, target: StandaloneTarget | BatchTarget, file: FileDeclaration, actor: Actor
    ) -> CommandResult[Upload]:
        """Register a partial upload of `file.size` bytes; raises as UploadCreator.register."""
        await self._creator.validate(file)
        # The quota counts the final upload; a partial upload only has to fit by itself.
        await self._transfers.quotas.require(target.owner, target.batch, file.size or 0)
        command = RegisterPartialUpload(
            id=partial_upload_id_for(self._new_id()),
            owner=target.owner,
            batch=target.batch if isinstance(target, BatchTarget) else None,
            size=file.size,
            metadata=file.metadata,
        )
        context = self._transfers.context(actor)
        return await register_partial_upload(self._transfers.log, command, context)

    async def concatenate(
        self,
        target: StandaloneTarget | BatchTarget,
        file: FileDeclaration,
        parts: Sequence[UUID],
        actor: Actor,
    ) -> RegisteredUpload:
        """Concatenate partial uploads, in their order, into one upload, and delete them.

        Idempotent: repeating the request after a crash at any point returns the same upload. Raises
        PartialUploadMissing, and what UploadCreator.create_with_content raises.
        """
        pieces = [await self._load_complete_part(id, target) for id in parts]
        upload = upload_id_for(target.batch, file.path, self._transfers.log.id_secret)
        if any(piece.state is UploadState.COMPLETED for piece in pieces):
            return RegisteredUpload(await self._find_concatenated(upload, pieces), False, 0)
        size = sum(piece.received for piece in pieces)
        if size > self._transfers.limits.max_file_size:
            raise BodyTooLarge(self._transfers.limits.max_file_size)
        file = replace(file, size=size)
        await self._creator.admit(target, file)
        blob = single_request_blob_name(upload, self._new_id())
        try:
            await self._copy_bytes(pieces, blob)
            registered = await self._creator.record_stored(target, file, size, blob, actor)
            if registered.upload.state in INCOMING:
                raise InvalidState(f"{file.path} is being received another way")
        except (CommandRejected, ApplicationError) as error:
            if not isinstance(error, OutcomeUnknown):
                await self._transfers.blobs.delete(blob)
            raise
        await self._delete_parts(pieces, actor)
        return registered

    async def _load_complete_part(self, id: UUID, target: StandaloneTarget | BatchTarget) -> Upload:
        """Return the partial upload if it is complete and of the target's owner and batch."""
        log = self._transfers.log
        origin = await log.origin(id)
        # Before anything is loaded: the response time must not reveal a foreign upload.
        if origin is None or origin.owner != target.owner or not is_partial_upload(id):
            raise PartialUploadMissing(id)
        log.forget(id)
        try:
            part = await log.upload(id)
        except NotFound:
            raise PartialUploadMissing(id) from None
        batch = target.batch if isinstance(target, BatchTarget) else id
        if part.batch != batch or part.state not in (UploadState.RECEIVED, UploadState.COMPLETED):
            raise PartialUploadMissing(id)
        return part

    async def _find_concatenated(self, upload: UUID, pieces: Sequence[Upload]) -> Upload:
        """Return the upload that these partial uploads were concatenated into before."""
        gone = next(piece for piece in pieces if piece.state is UploadState.COMPLETED)
        try:
            known = await self._transfers.log.upload(upload)
        except NotFound:
            raise PartialUploadMissing(gone.id) from None
        if known.received != sum(piece.received for piece in pieces):
            raise PartialUploadMissing(gone.id)
        return known

    async def _copy_bytes(self, pieces: Sequence[Upload], blob: str) -> None:
        """Copy the bytes. Raises TooManyConflicts if another request deletes them meanwhile."""
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

    async def _delete_parts(self, pieces: Sequence[Upload], actor: Actor) -> None:
        """Delete concatenated partial uploads; after a crash the sweeper deletes the rest."""
        for piece in pieces:
            context = self._transfers.context(actor)
            await execute(
                self._transfers.log, UploadCommand(piece.id, Upload.mark_concatenated), context
            )
            await self._transfers.delete_blobs(piece)
