"""Small files sent together: a tar archive of some of them, in one request."""

from __future__ import annotations

import asyncio
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from uuid import UUID

import msgspec

from application.handlers.uploads import FileResult
from domain.file import FileDeclaration
from interfaces.cli.client import LOST, PASSING, Client, error_from_response
from interfaces.cli.console import Refusal, one_command_error
from interfaces.cli.files import Entry, ScannedFile, SkippedFile, scan
from interfaces.cli.wait import RequestBackoff
from interfaces.common.api_types import ReceivedFilesResponse

# The sending half of tus 1.0: where an upload stands, and the bytes from there on.

VERSION = {"Tus-Resumable": "1.0.0"}
CHUNK_BYTES = 1024 * 1024
RETRIED_STATUSES = PASSING | {408, 409, 423}  # ask where the upload stands, and go on from there

Moved = Callable[[int], None]


class FileModified(Exception):
    """The file was changed on the disk while it was being sent."""


class SourceFile:
    """Open file that must keep its size and its modification time.

    `moved` is called with the number of bytes that count as sent; negative if they must be sent
    again.
    """

    def __init__(self, path: Path, size: int, modified: int, moved: Moved) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._found = (size, modified)
        self._moved = moved
        self.size = size
        self.offset = 0
        self.changed = False

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes from `offset`; the last chunk only if the file is unchanged."""
        while self.offset < self.size:
            size = min(CHUNK_BYTES, self.size - self.offset)
            chunk = await asyncio.to_thread(os.pread, self._descriptor, size, self.offset)
            if len(chunk) < size or (self.offset + size == self.size and self.is_changed()):
                self.changed = True
                raise FileModified
            yield chunk
            self.move_to(self.offset + size)

    def is_changed(self) -> bool:
        status = os.fstat(self._descriptor)
        return (status.st_size, status.st_mtime_ns) != self._found

    def move_to(self, offset: int) -> None:
        """Continue at `offset`: the server has the bytes before it."""
        self._moved(offset - self.offset)
        self.offset = offset


async def send(client: Client, upload: UUID, source: SourceFile, *, fresh: bool) -> None:
    """Send the missing bytes of one upload, and resume after interruptions.

    A new upload begins at 0; otherwise, and after any interruption, the server is asked for the
    offset. Raises FileModified, Refusal, Unreachable.
    """
    backoff = RequestBackoff(client.connection)
    known = fresh
    while True:
        try:
            if not known:
                before = source.offset
                source.move_to(await offset_of(client, upload))
                if source.offset > before:
                    backoff.reset()
                if source.offset == source.size > 0:
                    return
            known = False
            await _patch(client, upload, source)
            return
        except LOST as error:
            if source.changed:
                raise FileModified from None
            await backoff.wait_after_failure(error)
        except Refusal as refusal:
            if refusal.status not in RETRIED_STATUSES:
                raise
            await backoff.wait(refusal)


async def offset_of(client: Client, upload: UUID) -> int:
    """Return the offset of the upload on the server. Raises Refusal, aiohttp.ClientError."""
    url = f"{client.server.url}/v1/uploads/{upload}"
    request = client.session.head(url, headers=VERSION)
    async with client.connection.answer(request) as response:
        if response.status >= 400:
            raise error_from_response(response.status, b"")
        return int(response.headers["Upload-Offset"])


async def _patch(client: Client, upload: UUID, source: SourceFile) -> None:
    """Send one request with all missing bytes."""
    url = f"{client.server.url}/v1/uploads/{upload}"
    headers = {
        **VERSION,
        "Upload-Offset": str(source.offset),
        "Content-Type": "application/offset+octet-stream",
        "Content-Length": str(source.size - source.offset),
    }
    request = client.session.patch(url, data=source.chunks(), headers=headers)
    async with client.connection.answer(request) as response:
        answer = await response.read()
        if response.status >= 400:
            raise error_from_response(response.status, answer)


MAX_BUNDLED_FILE_BYTES = 256 * 1024  # bytes of a file that travels with others
MAX_BUNDLE_FILES = 250
MAX_BUNDLE_BYTES = 4 * 1024 * 1024

HEADERS = {"Content-Type": "application/x-tar"}


class PendingFile(msgspec.Struct, frozen=True):
    """Registered file that has to be sent; a `fresh` one has no bytes on the server."""

    upload: UUID
    file: ScannedFile
    fresh: bool


class TarArchive(msgspec.Struct, frozen=True):
    """Tar archive of the readable files, and the reason for each of the others."""

    body: bytes
    tasks: list[PendingFile]
    unreadable: list[tuple[PendingFile, str]]


class TarBundle:
    """Files that are sent together in one request."""

    def __init__(self) -> None:
        self.tasks: list[PendingFile] = []
        self._size = 0

    def add(self, task: PendingFile) -> bool:
        """Add a file; return whether the bundle is full."""
        self.tasks.append(task)
        self._size += task.file.size
        return len(self.tasks) >= MAX_BUNDLE_FILES or self._size >= MAX_BUNDLE_BYTES


def build_tar(tasks: Sequence[PendingFile]) -> TarArchive:
    """Read the files into an archive; each must have its size and modification time unchanged."""
    parts, packed, unreadable = [], [], []
    for task in tasks:
        try:
            content = _read(task.file)
        except OSError as error:
            unreadable.append((task, (error.strerror or str(error)).lower()))
            continue
        if content is None:
            unreadable.append((task, "it changed on the disk while it was being sent"))
            continue
        header = tarfile.TarInfo(task.file.name)
        header.size = len(content)
        parts += [header.tobuf(tarfile.PAX_FORMAT), content]
        parts.append(bytes(-len(content) % tarfile.BLOCKSIZE))
        packed.append(task)
    parts.append(bytes(2 * tarfile.BLOCKSIZE))
    return TarArchive(b"".join(parts), packed, unreadable)


async def send_packed(client: Client, batch: UUID, body: bytes) -> Sequence[FileResult]:
    """Send a bundle and return the result of each file. Repeated after an interruption.

    Raises Refusal, Unreachable.
    """
    backoff = RequestBackoff(client.connection)
    url = f"{client.server.url}/v1/batches/{batch}/uploads"
    while True:
        try:
            request = client.session.post(url, data=BytesIO(body), headers=HEADERS)
            async with client.connection.answer(request) as response:
                answer = await response.read()
            if response.status < 400:
                return msgspec.json.decode(answer, type=ReceivedFilesResponse).files
            refusal = error_from_response(response.status, answer)
            if response.status not in RETRIED_STATUSES:
                raise refusal
            await backoff.wait(refusal, response.headers.get("Retry-After"))
        except LOST as error:
            await backoff.wait_after_failure(error)


async def already_received(client: Client, batch: UUID) -> frozenset[UUID]:
    """Return the uploads of the batch whose bytes are complete, by the read model."""
    return frozenset(
        [
            upload.id
            async for upload in client.uploads(batch)
            if upload.state not in ("registered", "transferring", "rejected")
        ]
    )


def _read(file: ScannedFile) -> bytes | None:
    """Return the bytes of the file; None if it has changed."""
    with open(file.path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if (status.st_size, status.st_mtime_ns) != (file.size, file.modified):
            return None
        content = stream.read(file.size + 1)
        return content if len(content) == file.size else None


# A folder into a batch: files are announced in lists and sent several at a time.

MAX_LISTED_FILES = 500  # files announced in one request
SHOWN_FAILURES = 200

Trouble = Callable[[str, str], None]


class UploadProgress(msgspec.Struct):
    """Progress of a command. `sent_bytes` includes the bytes sent by an earlier run.

    `stopped` is the reason for unsent files, if another run can send them.
    """

    files: int = 0
    size: int = 0
    sent_files: int = 0
    sent_bytes: int = 0
    failures: int = 0
    reasons: list[tuple[str, str]] = []
    stopped: Refusal | None = None

    @property
    def unsent_files(self) -> int:
        """Number of files that another run has to send."""
        return max(0, self.files - self.sent_files - self.failures)

    def stop(self, refusal: Refusal) -> None:
        """Stop sending: the first reason applies to all remaining files."""
        self.stopped = self.stopped or refusal

    def fail(self, path: str, reason: str) -> None:
        """Count a failure; the first ones are kept for the summary."""
        self.failures += 1
        if len(self.reasons) < SHOWN_FAILURES:
            self.reasons.append((path, reason))


class UploadSession:
    """Upload of everything below the roots into one open batch; small files are bundled."""

    def __init__(
        self, client: Client, batch: UUID, roots: dict[str, Path], jobs: int, trouble: Trouble
    ) -> None:
        self._client = client
        self._batch = batch
        self._roots = roots
        self._jobs = jobs
        self._trouble = trouble
        self._queue: asyncio.Queue[PendingFile | TarBundle | None] = asyncio.Queue(
            2 * MAX_LISTED_FILES
        )
        self._bundle = TarBundle()
        self._there: frozenset[UUID] | None = None  # asked for once an earlier run is met
        self.tally = UploadProgress()

    def measure(self) -> None:
        """Count files and bytes first, as the total of the progress."""
        for entry in scan(self._roots):
            if isinstance(entry, ScannedFile):
                self.tally.files += 1
                self.tally.size += entry.size

    async def run(self) -> UploadProgress:
        """Send everything. Raises Refusal, Unreachable if the batch itself cannot continue."""
        with one_command_error():
            async with asyncio.TaskGroup() as group:
                for _ in range(self._jobs):
                    group.create_task(self._transfer())
                group.create_task(self._announce())
        return self.tally

    async def _announce(self) -> None:
        entries = scan(self._roots)
        while not self.tally.stopped and (listed := await asyncio.to_thread(_next_list, entries)):
            for entry in listed:
                if isinstance(entry, SkippedFile):
                    self._fail(str(entry.path), entry.reason)
            files = [entry for entry in listed if isinstance(entry, ScannedFile)]
            for file, answer in zip(files, await self._declare(files), strict=True):
                if answer.status == "rejected":
                    self._fail(file.name, answer.message or "rejected by the server")
                else:
                    await self._assign(PendingFile(answer.upload, file, answer.status == "added"))
        if self._bundle.tasks:
            await self._queue.put(self._bundle)
        for _ in range(self._jobs):
            await self._queue.put(None)

    async def _declare(self, files: list[ScannedFile]) -> list[FileResult]:
        if not files:
            return []
        declared = [FileDeclaration(path=file.name, size=file.size) for file in files]
        return await self._client.add_files(self._batch, declared)

    async def _assign(self, task: PendingFile) -> None:
        """Count what an earlier run has sent; assign the rest to bundles or transfers."""
        if task.file.size > MAX_BUNDLED_FILE_BYTES:
            await self._queue.put(task)
            return
        if not task.fresh and self._there is None:
            self._there = await already_received(self._client, self._batch)
        if not task.fresh and self._there is not None and task.upload in self._there:
            self._sent(task)
        elif self._bundle.add(task):
            await self._queue.put(self._bundle)
            self._bundle = TarBundle()

    async def _transfer(self) -> None:
        while work := await self._queue.get():
            if self.tally.stopped:
                continue  # dropped, so that the producer of the queue is not blocked
            if isinstance(work, TarBundle):
                await self._send_together(work.tasks)
            else:
                await self._send_alone(work)

    async def _send_together(self, tasks: list[PendingFile]) -> None:
        packed = await asyncio.to_thread(build_tar, tasks)
        for task, reason in packed.unreadable:
            await self._give_up(task, reason)
        try:
            answers = await send_packed(self._client, self._batch, packed.body)
        except Refusal as refusal:
            await self._refused(packed.tasks, refusal)
            return
        for task, answer in zip(packed.tasks, answers, strict=True):
            if answer.status == "rejected":
                await self._give_up(task, answer.message or "rejected by the server")
            else:
                self._sent(task)

    async def _send_alone(self, task: PendingFile) -> None:
        try:
            with SourceFile(
                task.file.path, task.file.size, task.file.modified, self._moved
            ) as source:
                await send(self._client, task.upload, source, fresh=task.fresh)
            self.tally.sent_files += 1
        except FileModified:
            await self._give_up(task, "it changed on the disk while it was being sent")
        except PermissionError as error:
            await self._give_up(task, (error.strerror or str(error)).lower())
        except FileNotFoundError:
            await self._give_up(task, "it vanished from the disk before it was sent")
        except Refusal as refusal:
            await self._refused([task], refusal)

    async def _refused(self, tasks: list[PendingFile], refusal: Refusal) -> None:
        """Handle a refusal of these files. Raises it if it is about the whole batch.

        After an error that may disappear, such as a full disk, sending stops, and registered files
        wait in the open batch for another run. Otherwise the batch would be sealed with files that
        never arrive.
        """
        if refusal.status in (401, 403):
            raise refusal
        if refusal.status >= 500 or refusal.status in RETRIED_STATUSES:
            self.tally.stop(refusal)
            return
        for task in tasks:
            await self._give_up(task, str(refusal))

    async def _give_up(self, task: PendingFile, reason: str) -> None:
        """Cancel the registered upload, so that the batch does not wait for it for ever."""
        self._fail(task.file.name, reason)
        try:
            await self._client.command(f"/v1/uploads/{task.upload}/cancel")
        except Refusal as refusal:
            if refusal.status != 409:  # it has ended already
                raise

    def _sent(self, task: PendingFile) -> None:
        """Count a file that was received in a bundle."""
        self.tally.sent_files += 1
        self._moved(task.file.size)

    def _moved(self, size: int) -> None:
        self.tally.sent_bytes += size

    def _fail(self, name: str, reason: str) -> None:
        self.tally.fail(name, reason)
        self._trouble(name, reason)


def _next_list(entries: Iterator[Entry]) -> list[Entry]:
    return list(islice(entries, MAX_LISTED_FILES))
