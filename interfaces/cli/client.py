"""A small typed client of the HTTP API, over one aiohttp session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import aiohttp
import msgspec

from application.handlers.uploads import FileResult
from application.views import AttemptView, BatchView, UploadView
from domain.file import FileDeclaration
from infrastructure.tasks import run_until_cancelled
from interfaces.cli.console import (
    CONNECT_TIMEOUT,
    ClientOptions,
    CommandError,
    OutOfService,
    Refusal,
    ServerAddress,
    emit,
    print_line,
    print_stderr,
)
from interfaces.cli.wait import RequestBackoff, ServerConnection
from interfaces.common.api_types import (
    AddedUploadsResponse,
    PageResponse,
    ProblemDocument,
    StartedBatchResponse,
)

T = TypeVar("T")

JSON = {"Content-Type": "application/json"}
ROWS_PER_PAGE = 500  # rows a request asks for
PASSING = frozenset({429, 502, 503, 504})  # statuses after which a retry can succeed
LOST = (aiohttp.ClientError, OSError)
"""What a request ends with that got no answer, or not all of one."""
LATEST = "latest"  # as `min_position`: whatever was recorded before the request, by whomever
READ_MODEL_TIMEOUT = 30.0  # seconds that a read waits for the server to show what was recorded


class _Problem(ProblemDocument, frozen=True):
    """A problem document with the members that commands act on.

    Every member is optional (RFC 9457 section 3.1): a proxy may send fewer than our server does.
    """

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    code: str = ""
    min_position: int | None = None
    free: int | None = None


class Client:
    """Client of one server with one key; requests are retried for `patience` seconds of silence."""

    def __init__(
        self,
        server: ServerAddress,
        *,
        patience: float = 0.0,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self.server = server
        self.connection = ServerConnection(
            server.url, patience=patience, connect_timeout=connect_timeout
        )

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self.server.key}"},
            connector=aiohttp.TCPConnector(limit=64),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.session.close()

    # Batches.

    async def start_batch(self, options: Mapping[str, Any], *, key: str) -> StartedBatchResponse:
        """Start a batch; the same idempotency key again returns the same batch."""
        headers = {"Idempotency-Key": key}
        return await self.ask(
            "POST", "/v1/batches", StartedBatchResponse, json=options, headers=headers
        )

    async def add_files(self, batch: UUID, files: list[FileDeclaration]) -> list[FileResult]:
        body = {"files": files}
        added = await self.ask(
            "POST", f"/v1/batches/{batch}/uploads", AddedUploadsResponse, json=body
        )
        return added.files

    async def batch(self, id: UUID | str, *, at: str | None = None) -> BatchView:
        return await self._as_of(f"/v1/batches/{id}", BatchView, at)

    async def batches(
        self, *, limit: int, state: str | None, label: str | None
    ) -> AsyncIterator[BatchView]:
        params = _without_none(state=state, label=label)
        async for row in self.pages("/v1/batches", BatchView, params, limit=limit, latest=True):
            yield row

    async def command(
        self, path: str, body: Mapping[str, Any] | None = None, *, method: str = "POST"
    ) -> None:
        """Send a command to a batch or an upload, for instance `/v1/batches/{id}/seal`."""
        await self.ask(method, path, msgspec.Raw, json=body)

    async def download(self, path: str, params: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Yield the bytes of a response as they arrive; see `read`. Raises Refusal, Unreachable."""
        lag = _Lag()
        while True:
            try:
                async for piece in self._download(path, {**params, **lag.params}):
                    yield piece
                return
            except Refusal as refusal:
                lag.wait_longer(refusal)

    async def _download(self, path: str, params: Mapping[str, str]) -> AsyncIterator[bytes]:
        backoff = RequestBackoff(self.connection)
        begun = False
        while True:
            request = self.session.get(self.server.url + path, params=params)
            try:
                async with self.connection.answer(request) as response:
                    if response.status >= 400:
                        raise error_from_response(response.status, await response.read())
                    begun = True
                    async for piece in response.content.iter_any():
                        yield piece
                    return
            except LOST as error:
                if begun:
                    raise self.connection.unreachable(error) from error
                await backoff.wait_after_failure(error)

    # Uploads.

    async def upload(self, id: UUID | str, *, at: str | None = None) -> UploadView:
        return await self._as_of(f"/v1/uploads/{id}", UploadView, at)

    async def uploads(
        self, batch: UUID | str, *, state: str | None = None, limit: int = 0
    ) -> AsyncIterator[UploadView]:
        params = _without_none(state=state)
        path = f"/v1/batches/{batch}/uploads"
        async for row in self.pages(path, UploadView, params, limit=limit, latest=True):
            yield row

    async def attempts(self, upload: UUID | str) -> list[AttemptView]:
        path = f"/v1/uploads/{upload}/attempts"
        return [row async for row in self.pages(path, AttemptView, {}, latest=True)]

    # Anything.

    async def pages(
        self,
        path: str,
        row: type[T],
        params: Mapping[str, str],
        *,
        limit: int = 0,
        cursor: str = "cursor",
        latest: bool = False,
    ) -> AsyncIterator[T]:
        """Yield the rows of a list, page by page; all of them if `limit` is 0.

        `cursor` is the name of the parameter for the next page's cursor; with `latest`, rows are
        read as by `read`.
        """
        ask = self.read if latest else partial(self.ask, "GET")
        place: dict[str, str] = {}
        left = limit or None
        while True:
            size = str(min(ROWS_PER_PAGE, left) if left else ROWS_PER_PAGE)
            query = {**params, **place, "limit": size}
            page = await ask(path, PageResponse[msgspec.Raw], params=query)
            for item in page.items:
                yield msgspec.json.decode(item, type=row)
            left = left - len(page.items) if left else None
            if page.next is None or left == 0:
                return
            place = {cursor: str(page.next)}

    async def read(self, path: str, type: type[T], *, params: Mapping[str, str]) -> T:
        """Read a resource that reflects every event recorded before the request.

        That includes what other commands and users recorded, so no position is kept here. Raises
        Refusal, Unreachable.
        """
        lag = _Lag()
        while True:
            try:
                return await self.ask("GET", path, type, params={**params, **lag.params})
            except Refusal as refusal:
                lag.wait_longer(refusal)

    async def _as_of(self, path: str, type: type[T], at: str | None) -> T:
        """Read a row as of now, or of a position or time, for which the log alone is read."""
        if at is not None:
            return await self.ask("GET", path, type, params={"at": at})
        return await self.read(path, type, params={})

    async def ask(
        self,
        method: str,
        path: str,
        type: type[T],
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send one request and return its decoded response. Raises Refusal, Unreachable."""
        body = None if json is None else msgspec.json.encode(json)
        sent = {**({} if body is None else JSON), **(headers or {})}
        backoff = RequestBackoff(self.connection)
        repeatable = method == "GET" or self.connection.patience > 0
        while True:
            request = self.session.request(
                method, self.server.url + path, data=body, params=params, headers=sent
            )
            try:
                async with self.connection.answer(request) as response:
                    answer = await response.read()
                    if response.status < 400:
                        return msgspec.json.decode(answer or b"null", type=type)
                    refusal = error_from_response(response.status, answer)
                    passing = response.status in PASSING and refusal.min_position is None
                    if not (passing and repeatable):
                        raise refusal
                    retry_after = response.headers.get("Retry-After")
                await backoff.wait(refusal, retry_after)
            except LOST as error:
                await backoff.wait_after_failure(error, repeatable=repeatable)


class _Lag:
    """Parameters of a read while the read model is behind the log."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + READ_MODEL_TIMEOUT
        self.params = {"min_position": LATEST}

    def wait_longer(self, refusal: Refusal) -> None:
        """Request the same position again; raise the refusal after the time limit."""
        if refusal.min_position is None or self._loop.time() > self._end:
            raise refusal
        if self.params["min_position"] == LATEST:
            print_stderr(f"waiting until the server shows position {refusal.min_position}")
        self.params = {"min_position": str(refusal.min_position)}


def error_from_response(status: int, answer: bytes) -> Refusal:
    """Return the error of a problem document; any other body is quoted."""
    unexplained = f"the server answered {status}"
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem(detail=unexplained)
    details = tuple(f"{one.pointer} {one.detail}".strip() for one in problem.errors)
    text = problem.detail or problem.title or unexplained
    repeated = all(one.detail in text for one in problem.errors)
    errors = () if repeated else details
    passing = status in (502, 503, 504) and problem.min_position is None
    kind = OutOfService if passing else Refusal
    refusal = kind(status, problem.code, text, errors, problem.min_position)
    refusal.free = problem.free
    return refusal


def _without_none(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


# The feed as a client follows it: every change once, through any number of cuts.

SUBPROTOCOL = "uptrail.v1.json"
MAX_FRAME_BYTES = 64 * 1024 * 1024
FINAL = range(4500, 4600)  # close codes after which connecting again would not help


class FeedFrame(msgspec.Struct, rename={"from_": "from"}):
    """A frame of the server, whatever its type; rows are those of the read model."""

    type: str
    cursor: str | None = None
    position: int | None = None
    from_: int | None = None
    to: int | None = None
    more: bool = False
    batches: list[BatchView] = []
    uploads: list[UploadView] = []
    attempts: list[AttemptView] = []
    code: str = ""
    message: str = ""
    reason: str = ""
    heartbeat: float | None = None


class FeedEnded(CommandError):
    """The server closed the feed with a code after which reconnecting is useless."""


async def subscribe(
    client: Client, batches: Sequence[UUID | str] | None
) -> AsyncIterator[FeedFrame]:
    """Yield frames with rows to apply, in order; `batches` None follows the rows of all batches.

    After a lost connection the feed resumes from the last cursor. Raises FeedEnded, Unreachable.
    """
    place = _ClientPosition([str(id) for id in batches] if batches is not None else "*")
    backoff = RequestBackoff(client.connection)
    while True:
        try:
            async with client.session.ws_connect(
                f"{client.server.url}/v1/feed",
                protocols=(SUBPROTOCOL,),
                max_msg_size=MAX_FRAME_BYTES,
            ) as socket:
                client.connection.mark_responded()
                await socket.send_str(place.subscription())
                async for frame in _frames(socket):
                    backoff.reset()
                    if place.applies(frame):
                        yield frame
                if socket.close_code in FINAL:
                    raise FeedEnded(f"the feed ended with code {socket.close_code}")
            await backoff.wait_after_failure(ConnectionError("the feed was cut"))
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise FeedEnded(
                    "the key is refused", "pass another with --key or UPTRAIL_KEY"
                ) from None
            await backoff.wait(client.connection.unreachable(error))
        except LOST as error:
            await backoff.wait_after_failure(error)


class _ClientPosition:
    """Position of this client, by the rule of the feed: from <= position < to."""

    def __init__(self, batches: list[str] | str) -> None:
        self._batches = batches
        self._position: int | None = None
        self._cursor: str | None = None

    def subscription(self) -> str:
        subscribe = {"type": "subscribe", "batches": self._batches, "after": self._cursor}
        return msgspec.json.encode(subscribe).decode()

    def applies(self, frame: FeedFrame) -> bool:
        match frame.type:
            case "snapshot":
                if not frame.more:
                    self._position, self._cursor = frame.position, frame.cursor
                return True
            case "changes":
                assert frame.from_ is not None
                assert frame.to is not None
                if self._position is None or not frame.from_ <= self._position < frame.to:
                    return False
                self._position, self._cursor = frame.to, frame.cursor
                return True
            case "reset":
                self._position = self._cursor = None
            case "error" if frame.code != "unknown_batch":  # an unknown one may yet appear
                raise FeedEnded(frame.message or frame.code, "look for it with: uptrail batch list")
        return False


async def _frames(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[FeedFrame]:
    """Yield decoded frames until the socket closes; respond to heartbeats."""
    silence: float | None = None
    while True:
        message: Any = await socket.receive(timeout=silence)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return
        frame = msgspec.json.decode(message.data, type=FeedFrame)
        if frame.heartbeat:
            silence = 3 * frame.heartbeat
        if frame.type == "ping":
            await socket.send_str('{"type":"pong"}')
        yield frame


# Runs the coroutine of a command with a client.

SILENCE_TIMEOUT = 60.0  # seconds without a response that a long job tolerates


def run_with_client(
    common: ClientOptions, what: Callable[[Client], Awaitable[T]], *, patience: float = 0.0
) -> T:
    """Run `what` with a client of the server that the options name. Raises CommandError."""

    async def asking() -> T:
        server, timeout = common.server(), common.connect_timeout
        async with Client(server, patience=patience, connect_timeout=timeout) as client:
            return await what(client)

    return asyncio.run(run_until_cancelled(asking()))


def send_command(
    common: ClientOptions | None,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    method: str = "POST",
    result: Mapping[str, Any],
    message: str,
) -> None:
    """Send a command; print the message, or the response if JSON was requested.

    Raises CommandError.
    """
    common = common or ClientOptions()

    async def run(client: Client) -> None:
        await client.command(path, body, method=method)

    run_with_client(common, run)
    if common.json:
        emit(result)
    else:
        print_line(message)


def run_on_uvloop(main: Coroutine[Any, Any, T]) -> T:
    """Run a server's coroutine on uvloop, where it is available."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    return uvloop.run(main)
