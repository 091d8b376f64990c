"""Small files that come together: made durable side by side, recorded in one append."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

import msgspec

from application.errors import ApplicationError, Conflict, OutcomeUnknown, TooManyConflicts
from application.handlers.execute import MAX_ATTEMPTS
from application.handlers.uploads import FileResult, RejectedFile, StoredFile, record_received_files
from application.transfer.errors import BatchFull, QuotaExceeded
from application.transfer.names import blob_of_whole
from application.transfer.transfers import Speaker, Transfers
from domain.batch.aggregate import Batch
from domain.batch.state import BatchState
from domain.errors import CommandRejected
from domain.file import FileDeclaration
from domain.ids import upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState


class Small(msgspec.Struct, frozen=True):
    """A sound file that is all in memory; `id` is that of its upload."""

    id: UUID
    file: FileDeclaration
    content: bytes


class Unfinished(msgspec.Struct, frozen=True):
    """A file of which some bytes arrived another way before: it goes on from there."""

    upload: Upload
    content: bytes


class Gathered(msgspec.Struct, frozen=True):
    """What became of each file of a group, in its order; `position` is 0 if nothing was new."""

    outcomes: tuple[FileResult | Unfinished, ...]
    position: int


class Gathering:
    """Records groups of small files: one wait for the disk and one append for many of them."""

    def __init__(self, transfers: Transfers, new_id: Callable[[], UUID]) -> None:
        self._transfers = transfers
        self._new_id = new_id

    async def record(
        self, batch: UUID, files: Sequence[Small | RejectedFile], speaker: Speaker
    ) -> Gathered:
        """Nothing of the group is answered before its bytes and events are durable.

        The paths of small files must differ. Raises NotFound, StorageFull, TooManyConflicts,
        Unavailable, OutcomeUnknown.
        """
        blobs: dict[UUID, str] = {}
        try:
            gathered = await self._record(batch, files, speaker, blobs)
        except (CommandRejected, ApplicationError) as error:
            # Once it is certain that nothing was recorded, nobody will ever ask for these.
            if not isinstance(error, OutcomeUnknown):
                await self._free(blobs)
            raise
        await self._free(blobs)  # of those that somebody else was faster with
        return gathered

    async def _record(
        self,
        batch: UUID,
        files: Sequence[Small | RejectedFile],
        speaker: Speaker,
        blobs: dict[UUID, str],
    ) -> Gathered:
        for _ in range(MAX_ATTEMPTS):
            try:
                return await self._try(batch, files, speaker, blobs)
            except Conflict:
                streams = [file.id for file in files if isinstance(file, Small)]
                self._transfers.log.forget(batch, *streams)
        raise TooManyConflicts(f"batch {batch} is changing too fast; try again")

    async def _try(
        self,
        id: UUID,
        files: Sequence[Small | RejectedFile],
        speaker: Speaker,
        blobs: dict[UUID, str],
    ) -> Gathered:
        """`blobs` holds what is stored and not on record, by upload."""
        log = self._transfers.log
        batch = await log.batch(id)
        judged = await self._judge(batch, files)
        await self._store([one for one in judged if isinstance(one, _Taken)], blobs)
        facts = [_fact(one, blobs) for one in judged if isinstance(one, _Taken | RejectedFile)]
        context = self._transfers.context(speaker)
        recorded, position = await record_received_files(log, batch, facts, context)
        answers = iter(recorded)
        outcomes: list[FileResult | Unfinished] = []
        for one in judged:
            if isinstance(one, _Taken):
                del blobs[one.id]
            outcomes.append(next(answers) if isinstance(one, _Taken | RejectedFile) else one)
        return Gathered(tuple(outcomes), position)

    async def _judge(
        self, batch: Batch, files: Sequence[Small | RejectedFile]
    ) -> list[_Taken | RejectedFile | FileResult | Unfinished]:
        """What is to be done with each: store it, refuse it, leave it, or go on with it."""
        log = self._transfers.log
        known = await log.versions([file.id for file in files if isinstance(file, Small)])
        judged: list[_Taken | RejectedFile | FileResult | Unfinished] = []
        for file in files:
            if isinstance(file, Small) and file.id in known:
                judged.append(_of_known(await log.upload(file.id), file))
            elif batch.state is not BatchState.OPEN:
                judged.append(_too_late(batch, file, log.id_secret))
            else:
                judged.append(await self._admit(batch, file))
        return judged

    async def _admit(self, batch: Batch, file: Small | RejectedFile) -> _Taken | RejectedFile:
        """A new file, unless its batch or its owner has had enough."""
        quotas = self._transfers.quotas
        if isinstance(file, RejectedFile):
            return file
        if not quotas.unlimited:
            try:
                await quotas.admit(batch.owner, batch.id, len(file.content))
            except (BatchFull, QuotaExceeded) as error:
                return RejectedFile(file.file, "quota_exceeded", str(error))
        return _Taken(file.id, file)

    async def _store(self, taken: Sequence[_Taken], blobs: dict[UUID, str]) -> None:
        """The bytes of those not stored yet."""
        missing = [one for one in taken if one.id not in blobs]
        await self._transfers.room.require(sum(len(one.small.content) for one in missing))
        names = {one.id: blob_of_whole(one.id, self._new_id()) for one in missing}
        contents = {names[one.id]: one.small.content for one in missing}
        async with self._transfers.room.with_free_bytes():
            found = await self._transfers.blobs.put_many(contents)
        blobs |= {id: found[name] for id, name in names.items()}

    async def _free(self, blobs: dict[UUID, str]) -> None:
        for name in blobs.values():
            await self._transfers.blobs.delete(name)


class _Taken(msgspec.Struct, frozen=True):
    """A file to be stored and recorded."""

    id: UUID
    small: Small
    known: Upload | None = None


def _fact(one: _Taken | RejectedFile, blobs: dict[UUID, str]) -> StoredFile | RejectedFile:
    """What is to be recorded of it."""
    if isinstance(one, RejectedFile):
        return one
    return StoredFile(one.small.file, len(one.small.content), blobs[one.id], one.known)


def _too_late(batch: Batch, file: Small | RejectedFile, secret: bytes) -> FileResult:
    refused = RejectedFile(file.file, "invalid_state", f"the batch is {batch.state}")
    return refused.result(upload_id_for(batch.id, file.file.path, secret))


def _of_known(upload: Upload, small: Small) -> _Taken | FileResult | Unfinished:
    """What to do with the bytes of a file that the batch knows."""
    size, file = len(small.content), small.file
    if upload.size not in (None, size):
        message = f"is in the batch already, with {upload.size} bytes"
        return RejectedFile(file, "other_size", message).result(upload.id)
    if upload.state is UploadState.REGISTERED:
        return _Taken(upload.id, small, upload)
    if upload.state is UploadState.TRANSFERRING:
        return Unfinished(upload, small.content)
    return FileResult(file.path, upload.id, "known")
