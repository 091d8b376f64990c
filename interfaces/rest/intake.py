"""How much is taken from each sender at a time: little from each where many send at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import StreamReader, web

if TYPE_CHECKING:
    from interfaces.rest.server import Connection

LEAST = 24 * 1024  # bytes: a head, and the whole of a small file
MOST = 512 * 1024  # bytes: from 32 to 512 KiB each doubling saves CPU, beyond it hardly any
TOGETHER = 8 * 1024 * 1024  # bytes of all senders at a time


class Bodies:
    """The connections whose requests have a body that has not ended, and one buffer for all.

    A loop reads every socket that has bytes before it runs anybody who takes them: what a
    thousand senders may hand over in one go is a thousand pieces. So the pieces shrink as the
    senders grow in number; a connection that has yet to say what it wants gets the least.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(MOST))
        self._arriving: set[web.RequestHandler] = set()
        self._piece = self._buffer

    def __len__(self) -> int:
        return len(self._arriving)

    def __contains__(self, connection: web.RequestHandler) -> bool:
        return connection in self._arriving

    def begin(self, connection: web.RequestHandler, body: StreamReader) -> None:
        """Counts a request's body, until its last byte or the end of its connection."""
        if not body.is_eof():
            self._arriving.add(connection)
            self._share()
            body.on_eof(lambda: self.end(connection))

    def end(self, connection: web.RequestHandler) -> None:
        if connection in self._arriving:
            self._arriving.discard(connection)
            self._share()

    def piece(self, connection: web.RequestHandler) -> memoryview:
        """Where the connection's next bytes may be put; to be copied before anybody else asks."""
        return self._piece if connection in self._arriving else self._buffer[:LEAST]

    def _share(self) -> None:
        each = TOGETHER // max(1, len(self._arriving))
        self._piece = self._buffer[: max(LEAST, min(MOST, each))]


class Intake(asyncio.BufferedProtocol):
    """Stands between a socket and its connection, and says how much is read at once."""

    def __init__(self, connection: Connection, bodies: Bodies) -> None:
        self._connection = connection
        self._bodies = bodies
        self._piece = memoryview(b"")

    def get_buffer(self, sizehint: int) -> memoryview:
        self._piece = self._bodies.piece(self._connection)
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(self._piece[:nbytes]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(transport)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._bodies.end(self._connection)
        self._connection.connection_lost(exc)
