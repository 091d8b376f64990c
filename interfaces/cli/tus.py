"""The sending half of tus 1.0: where an upload stands, and the bytes from there on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

from interfaces.cli.client import LOST, PASSING, Client, refusal_of
from interfaces.cli.errors import Refusal
from interfaces.cli.waiting import Waits

VERSION = {"Tus-Resumable": "1.0.0"}
CHUNK = 1024 * 1024
AGAIN = PASSING | {408, 409, 423}  # ask where the upload stands, and go on from there

Moved = Callable[[int], None]


class FileChanged(Exception):
    """The file was changed on the disk while it was being sent."""


class Source:
    """One open file that must stay as it was found: same size, same time of change.

    `moved` hears of every byte that counts as sent, and of those that have to be sent again.
    """

    def __init__(self, path: Path, size: int, modified: int, moved: Moved) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._found = (size, modified)
        self._moved = moved
        self.size = size
        self.offset = 0
        self.changed = False

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)

    async def rest(self) -> AsyncIterator[bytes]:
        """The bytes from `offset`; the last chunk is given only if the file is still the same."""
        while self.offset < self.size:
            size = min(CHUNK, self.size - self.offset)
            chunk = await asyncio.to_thread(os.pread, self._descriptor, size, self.offset)
            if len(chunk) < size or (self.offset + size == self.size and self.is_changed()):
                self.changed = True
                raise FileChanged
            yield chunk
            self.move_to(self.offset + size)

    def is_changed(self) -> bool:
        status = os.fstat(self._descriptor)
        return (status.st_size, status.st_mtime_ns) != self._found

    def move_to(self, offset: int) -> None:
        """The receiver has this much, as far as is known."""
        self._moved(offset - self.offset)
        self.offset = offset


async def send(client: Client, upload: UUID, source: Source, *, fresh: bool) -> None:
    """Sends what is missing of one upload, through interruptions.

    A fresh upload begins at 0 without asking; otherwise, and after any interruption, the server
    says where to go on. Raises FileChanged, Refusal, Unreachable.
    """
    waits = Waits(client.connection)
    known = fresh
    while True:
        try:
            if not known:
                before = source.offset
                source.move_to(await offset_of(client, upload))
                if source.offset > before:
                    waits.calm()
                if source.offset == source.size > 0:
                    return
            known = False
            await _patch(client, upload, source)
            return
        except LOST as error:
            if source.changed:
                raise FileChanged from None
            await waits.lost(error)
        except Refusal as refusal:
            if refusal.status not in AGAIN:
                raise
            await waits.next(refusal)


async def offset_of(client: Client, upload: UUID) -> int:
    """How many bytes the server has. Raises Refusal, aiohttp.ClientError."""
    url = f"{client.server.url}/v1/uploads/{upload}"
    request = client.session.head(url, headers=VERSION)
    async with client.connection.answer(request) as response:
        if response.status >= 400:
            raise refusal_of(response.status, b"")
        return int(response.headers["Upload-Offset"])


async def _patch(client: Client, upload: UUID, source: Source) -> None:
    """One request with all that is missing."""
    url = f"{client.server.url}/v1/uploads/{upload}"
    headers = {
        **VERSION,
        "Upload-Offset": str(source.offset),
        "Content-Type": "application/offset+octet-stream",
        "Content-Length": str(source.size - source.offset),
    }
    request = client.session.patch(url, data=source.rest(), headers=headers)
    async with client.connection.answer(request) as response:
        answer = await response.read()
        if response.status >= 400:
            raise refusal_of(response.status, answer)
