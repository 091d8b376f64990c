"""Many small files at once: those that came whole, and those turned away, in one append."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec

from application.envelope import Append, Unless, Write
from application.handlers.deciding import Context
from application.handlers.registering import AddedFile
from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch
from domain.batch.events import CLOSING
from domain.file import FileDeclaration, printable
from domain.upload.aggregate import Upload
from domain.upload.events import UploadEvent
from domain.upload.registration import register, reject


class Stored(msgspec.Struct, frozen=True):
    """A file whose bytes are durable under `blob`; `known` where it was declared before."""

    file: FileDeclaration
    size: int
    blob: str
    known: Upload | None = None


class TurnedAway(msgspec.Struct, frozen=True):
    """A file that will not be taken: `code` for programs, `message` for people."""

    file: FileDeclaration
    code: str
    message: str

    def answer(self, upload: UUID) -> AddedFile:
        return AddedFile(printable(self.file.path), upload, "rejected", self.code, self.message)


async def receive_files(
    log: EventLog, batch: Batch, files: Sequence[Stored | TurnedAway], context: Context
) -> tuple[tuple[AddedFile, ...], int]:
    """One answer for each file, in their order, and the position of the append; 0 for none.

    All are recorded or none. The batch must be open unless every file was declared before.
    Raises NotNow, Conflict where a file or the batch has moved on, Unavailable, Undetermined.
    """
    answers, writes, joined = [], [], []
    for file in files:
        if isinstance(file, Stored):
            writes.append(_received(batch, file, context, log.id_secret))
            answers.append(AddedFile(file.file.path, writes[-1].stream, "received"))
            joined += [] if file.known else [file.size]
        else:
            writes.append(_refused(batch, file, context, log.id_secret))
            answers.append(file.answer(writes[-1].stream))
    fresh = await _without_repetitions(log, writes, answers)
    return tuple(answers), await _append(log, batch, fresh, joined, context)


async def _without_repetitions(
    log: EventLog, writes: list[Write], answers: list[AddedFile]
) -> list[Write]:
    """A refusal that is on record already, or twice in the list, is recorded once."""
    refused = [answer.upload for answer in answers if answer.status == "rejected"]
    known = await log.versions(refused) if refused else {}
    return list({write.stream: write for write in writes if write.stream not in known}.values())


async def _append(
    log: EventLog, batch: Batch, writes: list[Write], joined: list[int], context: Context
) -> int:
    if not writes:
        return 0
    own: tuple[Write, ...] = ()
    if joined:
        added = batch.add_uploads(len(joined), sum(joined), at=context.at, by=context.by)
        own = (Write(batch.id, None, added),)
    closed = Unless(batch.id, batch.version, CLOSING)
    guarded = (closed,) if any(not write.expected for write in writes) else ()
    append = Append((*own, *writes), unless=guarded, cause=context.cause)
    return (await log.append(append)).position


def _refused(batch: Batch, file: TurnedAway, context: Context, secret: bytes) -> Write:
    named = FileDeclaration(path=printable(file.file.path))
    stream, events = reject(
        batch, named, file.code, file.message, secret, at=context.at, by=context.by
    )
    return Write(stream, 0, events)


def _received(batch: Batch, stored: Stored, context: Context, secret: bytes) -> Write:
    """What is recorded of one file: that it was registered, if it is new, and is all there."""
    events: tuple[UploadEvent, ...] = ()
    upload = stored.known
    if upload is None:
        stream, events = register(batch, stored.file, secret, at=context.at, by=context.by)
        upload = Upload.begin(stream, events[0])
    received = upload.receive(stored.size, stored.blob, at=context.at, by=context.by)
    version = stored.known.version if stored.known else 0
    return Write(upload.id, version, (*events, *received))
