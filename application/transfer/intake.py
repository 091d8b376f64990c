"""Files that follow each other in one request: each is judged by itself, small ones in groups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

from application.handlers.uploads import FileResult, RejectedFile, find_unnormalised_upload
from application.transfer.arriving import Arrivals
from application.transfer.gathering import Gathered, Gathering, Small, Unfinished
from application.transfer.one_of_many import OneOfMany
from application.transfer.transfers import Speaker, Transfers
from domain.file import FileDeclaration, sanitize, validate_declaration
from domain.ids import upload_id_for

SMALL = 256 * 1024  # bytes of a file that is held in memory until its group is recorded
GROUP_FILES = 250
GROUP_BYTES = 4 * 1024 * 1024


class Intake:
    """Takes the files of one request into one batch.

    While a group is being recorded the next one is read. Memory: two groups, whatever the
    number and the size of the files; and one short answer for each file.
    """

    def __init__(
        self,
        transfers: Transfers,
        arrivals: Arrivals,
        gathering: Gathering,
        batch: UUID,
        speaker: Speaker,
    ) -> None:
        self._transfers = transfers
        self._large = OneOfMany(transfers, arrivals, speaker)
        self._gathering = gathering
        self._batch = batch
        self._speaker = speaker
        self._seen: set[UUID] = set()
        self._group: list[Small | RejectedFile] = []
        self._places: list[int] = []  # in `_answers`, of the files of the group
        self._bytes = 0
        self._recording: asyncio.Task[None] | None = None
        self._answers: list[FileResult | None] = []
        self._position = 0  # of the groups

    @property
    def position(self) -> int:
        """Of what was recorded last; 0 if nothing was."""
        return max(self._position, self._large.position)

    @property
    def count(self) -> int:
        """How many files came so far, those turned away included."""
        return len(self._answers)

    async def take(self, file: FileDeclaration, chunks: AsyncIterator[bytes]) -> None:
        """Takes one file in. Whatever of its chunks is left unread after this is not wanted.

        A file without a size ends where its chunks do. Raises Ended where the sender is gone or
        silent, StorageFull, NotFound, TooManyConflicts, Unavailable, OutcomeUnknown; then `close`.
        """
        if refusal := self._judge(file):
            await self.turn_away(file, *refusal)
            return
        head = bytearray()
        if (file.size or 0) <= SMALL:
            async for chunk in chunks:
                head += chunk
                if len(head) > SMALL:
                    break
            else:
                await self._take_small(file, bytes(head))
                return
        await self._flush()  # a large file takes its time: nobody before it should wait for that
        place = self._place()
        whole = _with(bytes(head), chunks)
        self._answers[place] = await self._large.stream(self._batch, file, whole)

    async def turn_away(self, file: FileDeclaration, code: str, message: str) -> None:
        """Refuses a file, on record."""
        named = FileDeclaration(path=sanitize(file.path))
        await self._add(RejectedFile(named, code, message))

    async def close(self) -> tuple[FileResult, ...]:
        """Records what is left; one answer for each file that came whole, in their order."""
        await self._flush()
        await self._recorded()
        return tuple(answer for answer in self._answers if answer is not None)

    async def abandon(self) -> None:
        """Waits for the group that is being recorded; what was read since is not kept."""
        if self._recording is not None:
            await asyncio.wait({self._recording})
            self._recording.exception()  # seen: nobody is left to be told

    def _judge(self, file: FileDeclaration) -> tuple[str, str] | None:
        """Why the file will not be taken, as far as can be said before its bytes."""
        for fault in validate_declaration(file):
            return "invalid", f"{fault.field} {fault.message}"
        limit = self._transfers.limits.max_file_size
        if (file.size or 0) > limit:
            return "too_large", _too_large(limit)
        id = upload_id_for(self._batch, file.path, self._transfers.log.id_secret)
        if id in self._seen:
            return "repeated", "another file of the same path came earlier in this request"
        self._seen.add(id)
        return None

    async def _take_small(self, file: FileDeclaration, content: bytes) -> None:
        limit = self._transfers.limits.max_file_size
        if len(content) > limit:
            await self.turn_away(file, "too_large", _too_large(limit))
        else:
            await self._add(Small(await self._id_of(file), file, content))

    async def _id_of(self, file: FileDeclaration) -> UUID:
        log = self._transfers.log
        earlier = await find_unnormalised_upload(log, self._batch, file.path)
        return earlier or upload_id_for(self._batch, file.path, log.id_secret)

    def _place(self) -> int:
        """Where the answer for the next file goes."""
        self._answers.append(None)
        return len(self._answers) - 1

    async def _add(self, file: Small | RejectedFile) -> None:
        self._places.append(self._place())
        self._group.append(file)
        self._bytes += len(file.content) if isinstance(file, Small) else 0
        if len(self._group) >= GROUP_FILES or self._bytes >= GROUP_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Has the group recorded beside what comes next; one at a time."""
        await self._recorded()
        if self._group:
            recording = self._record(self._group, self._places)
            self._recording = asyncio.create_task(recording, name="record a group")
            self._group, self._places, self._bytes = [], [], 0

    async def _recorded(self) -> None:
        if (recording := self._recording) is not None:
            await asyncio.shield(recording)
            self._recording = None

    async def _record(self, group: list[Small | RejectedFile], places: list[int]) -> None:
        gathered: Gathered = await self._gathering.record(self._batch, group, self._speaker)
        self._position = max(self._position, gathered.position)
        for place, outcome in zip(places, gathered.outcomes, strict=True):
            if isinstance(outcome, Unfinished):
                content = _in_one(outcome.content)
                size = len(outcome.content)
                outcome = await self._large.go_on(outcome.upload, content, size=size)
            self._answers[place] = outcome


async def _in_one(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content


async def _with(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The file from its beginning, of which something was read already."""
    if head:
        yield head
    async for chunk in chunks:
        yield chunk


def _too_large(limit: int) -> str:
    return f"size must be at most {limit} bytes"
