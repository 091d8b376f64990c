"""HTTP server: aiohttp's with deadlines, bounded read buffers and problem documents for bytes that
cannot be parsed as a request."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

import structlog
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import _ErrInfo

from application.transfers.errors import BelowMinRate, IdleTimeout, TransferAborted
from interfaces.common.deadlines import Deadlines, Fault, Sweep, TransferRate
from interfaces.common.problems import CONTENT_TYPE, Problem
from interfaces.common.services import SERVICES

MIN_READ = 24 * 1024  # bytes: a head, and the whole of a small file
MAX_READ = 512 * 1024  # bytes: from 32 to 512 KiB each doubling saves CPU, beyond it hardly any
MAX_TOTAL_READ = 8 * 1024 * 1024  # bytes that all connections together may read at once


class ReadBufferPool:
    """Shared read buffer, and the size of a read for each connection.

    An event loop reads every readable socket before it runs the tasks that consume the bytes: a
    thousand senders can fill a thousand reads in one iteration. So reads shrink as the number of
    request bodies under way grows; a connection that sends no body gets the smallest.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(MAX_READ))
        self._receiving: set[web.RequestHandler] = set()
        self._share = self._buffer

    def __len__(self) -> int:
        return len(self._receiving)

    def __contains__(self, connection: web.RequestHandler) -> bool:
        return connection in self._receiving

    def begin(self, connection: web.RequestHandler, body: StreamReader) -> None:
        """Count a request's body, until its last byte or the end of its connection."""
        if not body.is_eof():
            self._receiving.add(connection)
            self._resize()
            body.on_eof(lambda: self.end(connection))

    def end(self, connection: web.RequestHandler) -> None:
        if connection in self._receiving:
            self._receiving.discard(connection)
            self._resize()

    def buffer_for(self, connection: web.RequestHandler) -> memoryview:
        """Return the buffer for the connection's next read; copy the bytes before the next call."""
        return self._share if connection in self._receiving else self._buffer[:MIN_READ]

    def _resize(self) -> None:
        each = MAX_TOTAL_READ // max(1, len(self._receiving))
        self._share = self._buffer[: max(MIN_READ, min(MAX_READ, each))]


class SizedBufferProtocol(asyncio.BufferedProtocol):
    """Adapter between a socket and its connection that limits the size of a read."""

    def __init__(self, connection: HttpConnection, bodies: ReadBufferPool) -> None:
        self._connection = connection
        self._bodies = bodies
        self._read_buffer = memoryview(b"")

    def get_buffer(self, sizehint: int) -> memoryview:
        self._read_buffer = self._bodies.buffer_for(self._connection)
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(self._read_buffer[:nbytes]))

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


_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h; socket has it from Python 3.12 on
MAX_UNSENT = 256 * 1024  # bytes of a response in the system, besides those on their way
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

if sys.platform == "linux":
    import fcntl
    import termios

_CLIENT_ERRORS = (
    ConnectionError,
    HttpProcessingError,
    web.RequestPayloadError,
    TransferAborted,
)

_log = structlog.get_logger(__name__)


class HttpConnection(web.RequestHandler):
    """A connection with deadlines that also answers malformed requests with a problem document.

    aiohttp itself only closes connections on which no request is under way, and after an hour.
    """

    __slots__ = (
        "_bodies",
        "_body",
        "_body_deferred",
        "_body_progress",
        "_closed_future",
        "_deadlines",
        "_head_since",
        "_newest_body",
        "_on_finished",
        "_raw_transport",
        "_response_progress",
        "_sweep",
        "_writer",
        "_written",
        "head_bytes",
    )

    def __init__(self, server: HttpConnectionFactory, **options: Any) -> None:
        super().__init__(server, **options)
        self._deadlines, self._sweep, self._bodies = server.deadlines, server.sweep, server.bodies
        self._head_since: float | None = None  # on the sweep's clock; None: no byte of it yet
        self._body: StreamReader | None = None  # of the request under way
        self._newest_body: StreamReader | None = None  # of the last head that is complete
        self._body_deferred = False
        self._body_progress = TransferRate()
        self._writer: AbstractStreamWriter | None = None  # of the request under way
        self._written = 0  # bytes of the responses before
        self._on_finished: list[Callable[[], None]] = []  # of the request under way
        self._response_progress = TransferRate()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # aiohttp drops its reference to the transport as soon as it begins to close it.
        self._raw_transport: asyncio.Transport | None = cast(asyncio.Transport, transport)
        self._closed_future: asyncio.Future[None] | None = None
        limit_unsent(self._raw_transport)
        self._head_since = self._sweep.now
        self._sweep.wake()
        self.head_bytes = 0

    def connection_lost(self, exc: BaseException | None) -> None:
        self._raw_transport = None
        super().connection_lost(exc)
        if self._closed_future is not None and not self._closed_future.done():
            self._closed_future.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Bound the head as a whole: aiohttp limits a header, and how many there are.

        One readiness event of uvloop can deliver up to 32 reads before the task that handles the
        request runs, so the body is known from the parser's messages, not from that task.
        """
        heads, body = self._request_count, self._newest_body
        in_body = body is not None and not body.is_eof()
        super().data_received(data)
        if self._request_count != heads:
            self._newest_body = self._messages[-1][1]
            self._fail_broken_body()
            self.head_bytes = 0
        elif in_body or self._upgraded:
            self.head_bytes = 0
        elif data:  # aiohttp also calls with none, to parse what a full queue held back
            self._count_head(data)

    def _count_head(self, data: bytes) -> None:
        """Count bytes of a head that is not complete, and close beyond MAX_HEAD."""
        if self._head_since is None and self._is_idle:
            self._head_since = self._sweep.now
        self.head_bytes += len(data)
        if self.head_bytes > MAX_HEAD and self.transport is not None:
            _log.info("head_too_large", bytes=self.head_bytes)
            if self._current_request is None:
                self.transport.write(_HEAD_TOO_LARGE)
            self.force_close()

    def _fail_broken_body(self) -> None:
        """End a body that cannot be parsed on: aiohttp leaves its reader waiting for more.

        The parser reports the fault as one more message, behind the request that it belongs to.
        """
        if not self._messages or not isinstance(self._messages[-1][0], _ErrInfo):
            return
        body = self._messages[-2][1] if len(self._messages) > 1 else self._body
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(web.RequestPayloadError("the body is malformed"))

    def closed_future(self) -> asyncio.Future[None]:
        """Return a future that is done once the connection is closed."""
        if self._closed_future is None:
            self._closed_future = asyncio.get_running_loop().create_future()
            if self.transport is None:
                self._closed_future.set_result(None)
        return self._closed_future

    def begin(self, body: StreamReader, writer: AbstractStreamWriter) -> None:
        """Record that a request has begun: its head is complete."""
        self._head_since = None
        self._body = None if body.is_eof() else body
        if self._body is None:  # the body of the previous request may have failed without ending
            self._bodies.end(self)
        self._body_deferred = False
        self._body_progress.restart()
        self._writer = writer

    def call_when_finished(self, callback: Callable[[], None]) -> None:
        """Call back once the response to the request under way has been sent, or cannot be."""
        self._on_finished.append(callback)

    def suspend_body_deadline(self) -> None:
        """Suspend the deadline of the body: the client waits for `100 Continue`."""
        self._body_deferred = True

    def resume_body_deadline(self) -> None:
        self._body_deferred = False

    def fail_body(self, error: TransferAborted) -> None:
        """Make every current or later read of the body raise this error."""
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(error)

    def check_deadlines(self, now: float) -> None:
        """End a request or response beyond its deadline. A WebSocket has deadlines of its own."""
        if self._raw_transport is None or self._payload_parser is not None:
            return
        self._check_response(self._raw_transport, now)
        if self._is_idle:
            self._check_head(now)
        elif self._body is not None:
            self._check_body(self._body, now)

    @property
    def _is_idle(self) -> bool:
        """Return whether the connection waits for the next head."""
        return self._waiter is not None and not self._waiter.done()

    def _check_head(self, now: float) -> None:
        since, limit = self._head_since, self._deadlines.head
        if since is not None and now - since >= limit:
            _log.info("request_head_timeout", seconds=limit)
            self.force_close()

    def _check_body(self, body: StreamReader, now: float) -> None:
        if body.is_eof() or body.exception() is not None:
            self._body = None
        elif self._body_deferred or self._reading_paused or self._buffer_paused:
            self._body_progress.restart()  # it is the server that does not read
        else:
            window, rate = self._deadlines.body, self._deadlines.min_rate
            fault = self._body_progress.fault(now, body.total_bytes, window, rate)
            if fault is not None:
                _log.info("request_body_too_slow", fault=fault.value, bytes=body.total_bytes)
                self.fail_body(IdleTimeout(window) if fault is Fault.SILENT else BelowMinRate(rate))

    def _check_response(self, transport: asyncio.Transport, now: float) -> None:
        """Abort the connection of a client that does not read its response.

        Bytes count once its system has acknowledged them: the buffer of the system alone can hold
        more than a slow client takes in half a minute.
        """
        buffered = transport.get_write_buffer_size()
        if not buffered:
            self._response_progress.restart()
            return
        current = 0 if self._writer is None else self._writer.output_size
        acknowledged = self._written + current - buffered - unacknowledged(transport)
        window, rate = self._deadlines.response, self._deadlines.min_rate
        fault = self._response_progress.fault(now, acknowledged, window, rate)
        if fault is not None:
            _log.info("response_too_slow", fault=fault.value, buffered=buffered)
            transport.abort()

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await super()._handle_request(request, start_time, request_handler)
        finally:
            self._written += request.writer.output_size
            self._writer = self._body = None
            if isinstance(request.content.exception(), TransferAborted):
                # aiohttp reads the rest of the body, and must not raise this error there.
                request.content.set_exception(None)  # type: ignore[arg-type]
            while self._on_finished:
                self._on_finished.pop()()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond to malformed HTTP, or to a failure before any middleware; then close.

        Raises ConnectionError where the client is gone.
        """
        if isinstance(exc, ConnectionError) and (is_gone(request) or request.writer.output_size):
            _log.info("client_gone", path=request.path, error=type(exc).__name__)
            raise exc
        if isinstance(exc, Problem):
            response = exc.response(request)
        else:
            self._log_error(request, status, exc, message)
            response = _malformed_request(status, exc).response(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log an error that a client causes without a stack trace: it is no fault of the server."""
        error = kw.get("exc_info")
        if isinstance(error, _CLIENT_ERRORS):
            _log.info("malformed_request", error=type(error).__name__)
        else:
            super().log_exception(*args, **kw)

    def _log_error(
        self,
        request: web.BaseRequest,
        status: int,
        exc: BaseException | None,
        message: str | None,
    ) -> None:
        """Log the error. Raises ConnectionError if the response has begun.

        Malformed requests are no faults of the server, and must not fill the log with stack traces.
        """
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            super().handle_error(request, status, exc, message)
            return
        _log.info("malformed_request", remote=request.remote, error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")


class HttpConnectionFactory(web.Server):
    """Factory of connections, with their shared read buffer and the sweep of their deadlines."""

    def __init__(self, server: Any, deadlines: Deadlines, **kwargs: Any) -> None:
        super().__init__(server.request_handler, request_factory=self._request, **kwargs)
        self._options = kwargs
        self._make = server.request_factory
        self.bodies = ReadBufferPool()
        self.deadlines = deadlines
        self.sweep = Sweep(deadlines.interval, lambda: cast(list[HttpConnection], self.connections))

    def __call__(self) -> SizedBufferProtocol:  # type: ignore[override]
        return SizedBufferProtocol(
            HttpConnection(self, loop=self._loop, **self._options), self.bodies
        )

    async def shutdown(self, timeout: float | None = None) -> None:
        await super().shutdown(timeout)
        self.sweep.close()

    def _request(
        self,
        message: RawRequestMessage,
        body: StreamReader,
        connection: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        self.bodies.begin(connection, body)
        cast(HttpConnection, connection).begin(body, writer)
        request: web.BaseRequest = self._make(message, body, connection, writer, task)
        return request


class Runner(web.AppRunner):
    """`web.AppRunner` with HttpConnection; takes the same arguments.

    Bodies are never decompressed: sizes and offsets count bytes as they were sent, and
    a small body cannot turn into a large one. Deadlines are those of the settings, unless given.
    """

    def __init__(
        self, app: web.Application, *, deadlines: Deadlines | None = None, **kwargs: Any
    ) -> None:
        services = app.get(SERVICES)
        configured = Deadlines() if services is None else Deadlines.of(services.settings)
        self._deadlines = deadlines or configured
        options = {
            "auto_decompress": False,
            "access_log": None,
            "max_field_size": MAX_HEAD,
            "keepalive_timeout": self._deadlines.keep_alive,
        }
        super().__init__(app, **{**options, **kwargs})

    async def _make_server(self) -> HttpConnectionFactory:
        return HttpConnectionFactory(await super()._make_server(), self._deadlines, **self._kwargs)


def on_finished(request: web.Request, callback: Callable[[], None]) -> None:
    """Call back once the response has been sent, or cannot be."""
    connection_of(request).call_when_finished(callback)


def connection_of(request: web.Request) -> HttpConnection:
    assert isinstance(request.protocol, HttpConnection)
    return request.protocol


def connection_closed(request: web.Request) -> asyncio.Future[None]:
    """Return a future that is done once the client's connection is closed; it may be cancelled."""
    return connection_of(request).closed_future()


def is_gone(request: web.BaseRequest) -> bool:
    """Return whether the client's connection is closed or closing."""
    return request.transport is None or request.transport.is_closing()


def limit_unsent(transport: asyncio.Transport) -> None:
    """Bound the kernel's send buffer for a client that does not read; the default is megabytes.

    Source: Documentation/networking/ip-sysctl.rst of Linux, tcp_notsent_lowat.
    """
    opened = transport.get_extra_info("socket")
    if sys.platform == "linux" and opened is not None and opened.family != socket.AF_UNIX:
        with suppress(OSError):
            opened.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, MAX_UNSENT)


def unacknowledged(transport: asyncio.Transport) -> int:
    """Return the sent bytes that the peer has not acknowledged; 0 if the system cannot report them.

    Source: Linux tcp(7), SIOCOUTQ, which has the number of TIOCOUTQ.
    """
    if sys.platform != "linux":
        return 0
    opened = transport.get_extra_info("socket")
    try:
        result = fcntl.ioctl(opened.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except OSError:
        return 0
    return int.from_bytes(result, sys.byteorder)


def _malformed_request(status: int, exc: BaseException | None = None) -> Problem:
    if isinstance(exc, LineTooLong):
        limit = exc.args[1]
        if str(limit) == str(MAX_HEAD):
            return Problem(431, "head_too_large", _TOO_LARGE)
        return Problem(414, "uri_too_long", _TOO_LARGE)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem(status, "malformed_request", "this cannot be read as an HTTP request")
    return Problem(status, "internal_error", "the error is logged")
