"""Small files sent together: a tar archive of some of them, in one request."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from io import BytesIO
from uuid import UUID

import msgspec

from interfaces.cli.client import LOST, AddedFile, Client, refusal_of
from interfaces.cli.tus import AGAIN
from interfaces.cli.waiting import Waits
from interfaces.cli.walking import Found

SMALL = 256 * 1024  # bytes of a file that travels with others
MOST_FILES = 250
MOST_BYTES = 4 * 1024 * 1024

HEADERS = {"Content-Type": "application/x-tar"}


class Task(msgspec.Struct, frozen=True):
    """A file that is announced and has to be sent; a fresh one was never begun."""

    upload: UUID
    file: Found
    fresh: bool


class Packed(msgspec.Struct, frozen=True):
    """An archive of the files that could be read, and why the others could not."""

    body: bytes
    tasks: list[Task]
    unreadable: list[tuple[Task, str]]


class _Taken(msgspec.Struct, frozen=True):
    files: list[AddedFile]


class Bundle:
    """Tasks that will travel together."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._size = 0

    def add(self, task: Task) -> bool:
        """Whether it is full now."""
        self.tasks.append(task)
        self._size += task.file.size
        return len(self.tasks) >= MOST_FILES or self._size >= MOST_BYTES


def pack(tasks: Sequence[Task]) -> Packed:
    """Reads the files, each of which must still be as it was found."""
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
    return Packed(b"".join(parts), packed, unreadable)


async def send_packed(client: Client, batch: UUID, body: bytes) -> list[AddedFile]:
    """What became of each file. Sent again after an interruption: what is there is left alone.

    Raises Refusal, Unreachable.
    """
    waits = Waits(client.connection)
    url = f"{client.server.url}/v1/batches/{batch}/uploads"
    while True:
        try:
            request = client.session.post(url, data=BytesIO(body), headers=HEADERS)
            async with client.connection.answer(request) as response:
                answer = await response.read()
            if response.status < 400:
                return msgspec.json.decode(answer, type=_Taken).files
            refusal = refusal_of(response.status, answer)
            if response.status not in AGAIN:
                raise refusal
            await waits.next(refusal, response.headers.get("Retry-After"))
        except LOST as error:
            await waits.lost(error)


async def received_already(client: Client, batch: UUID) -> frozenset[UUID]:
    """The uploads of the batch that have all their bytes, as far as the read model knows."""
    return frozenset(
        [
            upload.id
            async for upload in client.uploads(batch)
            if upload.state not in ("registered", "transferring", "rejected")
        ]
    )


def _read(file: Found) -> bytes | None:
    """The file's bytes; None where it is not what was announced."""
    with open(file.path, "rb") as stream:
        status = os.fstat(stream.fileno())
        if (status.st_size, status.st_mtime_ns) != (file.size, file.modified):
            return None
        content = stream.read(file.size + 1)
        return content if len(content) == file.size else None
