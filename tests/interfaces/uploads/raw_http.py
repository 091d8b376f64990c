"""Raw sockets that send requests by hand: they stop, break and send malformed bytes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from types import TracebackType
from typing import Any, Self

from tests.interfaces.uploads.server import BYTES, Server


def header(head: bytes, name: str) -> str | None:
    for line in head.decode().split("\r\n")[1:]:
        found, _, text = line.partition(": ")
        if found.lower() == name.lower():
            return text
    return None


class Sender:
    """One connection on which a request is sent by hand."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __aenter__(self) -> Self:
        opened = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._reader, self._writer = opened
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.leave()

    async def begin(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        said = {"Host": "test", **self._server.as_(self._server.key), **(headers or {})}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in said.items())]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def begin_patch(self, location: str, offset: int, length: int, body: bytes) -> None:
        """A PATCH that promises `length` bytes and sends those of `body`."""
        headers = {**BYTES, "Upload-Offset": str(offset), "Content-Length": str(length)}
        await self.begin("PATCH", location, headers, body)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """The status and the headers of the next answer."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 60)
        return int(head.split(b" ", 2)[1]), head

    async def body(self, head: bytes) -> Any:
        """Read the JSON body of the response with this head."""
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert found is not None, head
        return json.loads(await self._reader.readexactly(int(found[1])))

    async def half_close(self) -> None:
        """FIN: nothing more will be sent, but an answer would still be read."""
        self._writer.write_eof()

    async def leave(self) -> None:
        """FIN in both directions."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return

    def reset(self) -> None:
        """RST, as of a process that was killed or a network that gave up."""
        raw: socket.socket = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
