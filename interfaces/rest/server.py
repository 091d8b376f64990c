"""The runner of the application: also what never becomes a request is answered with a problem."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, ClassVar

import structlog
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage

from interfaces.rest.intake import Bodies, Intake
from interfaces.rest.problems import CONTENT_TYPE, Problem

MAX_HEAD = 256 * 1024
"""Bytes of the head of a request, and of any header in it: a concatenation of 1,000 parts names
as many URLs in one header, of some 100 bytes each."""

_TOO_LARGE = (
    f"a request line must be at most 8190 bytes, all headers together at most {MAX_HEAD} bytes"
)
_DOCUMENT = (
    '{"type":"/problems/head_too_large","title":"Request Header Fields Too Large","status":431,'
    f'"code":"head_too_large","detail":"{_TOO_LARGE}"}}'
)
_HEAD_TOO_LARGE = (
    f"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: {CONTENT_TYPE}\r\n"
    f"Content-Length: {len(_DOCUMENT)}\r\nConnection: close\r\n\r\n{_DOCUMENT}"
).encode()

_log = structlog.get_logger(__name__)


class Connection(web.RequestHandler):
    """A connection whose unreadable requests get a problem document too.

    One that has not sent a whole head of a request within `patience` seconds is closed: aiohttp
    itself only waits for the second one with a limit.
    """

    __slots__ = ("_first", "_lost", "head_bytes")

    patience: ClassVar[float] = 30.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._first = loop.call_later(self.patience, self._give_up)
        self._lost: asyncio.Future[None] | None = None
        self.head_bytes = 0

    def data_received(self, data: bytes, *, in_body: bool = False) -> None:
        """Bound the head as a whole: aiohttp limits a header, and how many there are."""
        heads = self._request_count
        super().data_received(data)
        if in_body or self._upgraded or self._request_count != heads:
            self.head_bytes = 0
            return
        self.head_bytes += len(data)
        if self.head_bytes > MAX_HEAD and self.transport is not None:
            _log.info("head_too_large", bytes=self.head_bytes)
            if self._current_request is None:
                self.transport.write(_HEAD_TOO_LARGE)
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._first.cancel()
        super().connection_lost(exc)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def lost(self) -> asyncio.Future[None]:
        """Done once the connection is, for who has nothing more to read on it."""
        if self._lost is None:
            self._lost = asyncio.get_running_loop().create_future()
            if self.transport is None:
                self._lost.set_result(None)
        return self._lost

    def _give_up(self) -> None:
        if self._request_count == 0:
            _log.info("connection_without_a_request", seconds=self.patience)
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what cannot be read as HTTP, or failed before any middleware; then closes."""
        if isinstance(exc, Problem):
            answer = exc.response(request)
        else:
            self._tell(request, status, exc, message)
            answer = _unreadable(status, exc).response(request)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cache-Control"] = "no-store"
        answer.force_close()
        return answer

    def _tell(
        self,
        request: web.BaseRequest,
        status: int,
        exc: BaseException | None,
        message: str | None,
    ) -> None:
        """Logs what is wrong; raises ConnectionError if it is too late for an answer.

        What a stranger sends is no error of ours, and must not fill the log with stack traces.
        """
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            super().handle_error(request, status, exc, message)
            return
        _log.info("request_unreadable", remote=request.remote, error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")


class Server(web.Server):
    """Makes a Connection of ours for each that is accepted, and knows whose bodies arrive."""

    def __init__(self, server: Any, **kwargs: Any) -> None:
        super().__init__(server.request_handler, request_factory=self._request, **kwargs)
        self._options = kwargs
        self._make = server.request_factory
        self.bodies = Bodies()

    def __call__(self) -> Intake:  # type: ignore[override]
        return Intake(Connection(self, loop=self._loop, **self._options), self.bodies)

    def _request(
        self,
        message: RawRequestMessage,
        body: StreamReader,
        connection: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        self.bodies.begin(connection, body)
        request: web.BaseRequest = self._make(message, body, connection, writer, task)
        return request


class Runner(web.AppRunner):
    """`web.AppRunner` with connections of ours; takes the same arguments.

    A body is never unpacked on the way in: sizes and offsets count bytes as they were sent, and
    a small body cannot turn into a large one.
    """

    def __init__(self, app: web.Application, **kwargs: Any) -> None:
        limits = {"auto_decompress": False, "access_log": None, "max_field_size": MAX_HEAD}
        super().__init__(app, **{**limits, **kwargs})

    async def _make_server(self) -> Server:
        return Server(await super()._make_server(), **self._kwargs)


def lost(request: web.Request) -> asyncio.Future[None]:
    """Done once the client's connection is; cancelling it harms nobody."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection.lost()


def _unreadable(status: int, exc: BaseException | None = None) -> Problem:
    if isinstance(exc, LineTooLong):
        limit = exc.args[1]
        if str(limit) == str(MAX_HEAD):
            return Problem(431, "head_too_large", _TOO_LARGE)
        return Problem(414, "uri_too_long", _TOO_LARGE)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem(status, "malformed_request", "this cannot be read as an HTTP request")
    return Problem(status, "internal_error", "the error is logged")
