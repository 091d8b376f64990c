"""A proxy to PostgreSQL that cuts a connection around COMMIT."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum

from psycopg.conninfo import conninfo_to_dict

COMMIT = re.compile(rb"B.{4}\0COMMIT\0", re.DOTALL)
"""The message Bind of the statement that was prepared as COMMIT, see PostgreSQL's manual, 54.7."""


class Cut(Enum):
    BEFORE_COMMIT = "before the server hears of it"
    AFTER_COMMIT = "before the client hears of it"
    SILENCE = "not at all, but the client never hears of it"


class FaultyProxy:
    """Listens at `url`; cuts the connection on which the next COMMIT passes once `arm` is called.

    `down` refuses every connection, and cuts those there are.
    """

    url = ""

    def __init__(self, server_url: str) -> None:
        known = conninfo_to_dict(server_url)
        self._host = str(known.get("host", "127.0.0.1"))
        self._port = int(known.get("port") or 5432)
        self._rest: dict[str, object] = {
            key: known[key] for key in ("user", "password", "dbname") if key in known
        }
        self._armed: Cut | None = None
        self._down = False
        self._open: set[asyncio.StreamWriter] = set()
        self.cuts = 0

    def arm(self, cut: Cut) -> None:
        self._armed = cut

    def down(self, down: bool = True) -> None:
        self._down = down
        for writer in tuple(self._open) if down else ():
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FaultyProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pairs: dict[str, object] = {
            **self._rest,
            "host": "127.0.0.1",
            "port": port,
            "sslmode": "disable",
        }
        self.url = " ".join(f"{key}={value}" for key, value in pairs.items())
        try:
            yield self
        finally:
            server.close()
            self.down()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._down:
            writer.close()
            return
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._port}"
            back_reader, back_writer = await asyncio.open_unix_connection(path)
        else:
            back_reader, back_writer = await asyncio.open_connection(self._host, self._port)
        self._open |= {writer, back_writer}
        try:
            answers = asyncio.create_task(self._copy(back_reader, writer))
            await self._pass_on(reader, back_writer, answers)
            for open_writer in (writer, back_writer):
                open_writer.close()
            await answers
        finally:
            self._open -= {writer, back_writer}

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        answers: asyncio.Task[None],
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65536):
                cut = self._armed if COMMIT.search(chunk) else None
                if cut is not None:
                    self._armed = None
                    self.cuts += 1
                    answers.cancel()
                if cut is not Cut.BEFORE_COMMIT:
                    server.write(chunk)
                    await server.drain()
                if cut is Cut.SILENCE:
                    while await reader.read(65536):
                        pass
                if cut is not None:
                    return

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
            writer.close()
