"""A small typed client of the HTTP API, over one aiohttp session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

import aiohttp
import msgspec

from application.views import AttemptView, BatchView, UploadView
from domain.file import FileDeclaration
from interfaces.cli.errors import OutOfService, Refusal
from interfaces.cli.options import CONNECT_TIMEOUT, Server
from interfaces.cli.output import tell_people
from interfaces.cli.waiting import Connection, Waits

T = TypeVar("T")

JSON = {"Content-Type": "application/json"}
PAGE = 500  # rows a request asks for
PASSING = frozenset({429, 502, 503, 504})  # worth asking again a little later
LOST = (aiohttp.ClientError, OSError)
"""What a request ends with that got no answer, or not all of one."""
LATEST = "latest"  # as `min_position`: whatever was recorded before the request, by whomever
LAG_PATIENCE = 30.0  # seconds that a read waits for the server to show what was recorded


class StartedBatch(msgspec.Struct, frozen=True):
    """The answer to a start: the batch, and the position at which it began."""

    id: UUID
    state: str = "open"


class AddedFile(msgspec.Struct, frozen=True):
    """What became of one file of a list: `status` is added, known or rejected."""

    path: str
    upload: UUID
    status: str
    message: str | None = None


class AddedFiles(msgspec.Struct, frozen=True):
    files: list[AddedFile]


class Page(msgspec.Struct, frozen=True):
    """Some rows, still encoded, and the cursor of the next page."""

    items: list[msgspec.Raw]
    next: str | int | None = None


class _Complaint(msgspec.Struct):
    pointer: str = ""
    detail: str = ""


class _Problem(msgspec.Struct):
    code: str = ""
    title: str = ""
    detail: str = ""
    errors: list[_Complaint] = []
    min_position: int | None = None
    free: int | None = None


class Client:
    """Asks one server with one key; `patience` is how many seconds of silence it puts up with."""

    def __init__(
        self, server: Server, *, patience: float = 0.0, connect_timeout: float = CONNECT_TIMEOUT
    ) -> None:
        self.server = server
        self.connection = Connection(server.url, patience=patience, connect_timeout=connect_timeout)

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

    async def start_batch(self, options: Mapping[str, Any], *, key: str) -> StartedBatch:
        """Starts a batch; the same idempotency key again gives the same one."""
        headers = {"Idempotency-Key": key}
        return await self.ask("POST", "/v1/batches", StartedBatch, json=options, headers=headers)

    async def add_files(self, batch: UUID, files: list[FileDeclaration]) -> list[AddedFile]:
        body = {"files": files}
        added = await self.ask("POST", f"/v1/batches/{batch}/uploads", AddedFiles, json=body)
        return added.files

    async def batch(self, id: UUID | str, *, at: str | None = None) -> BatchView:
        return await self._as_of(f"/v1/batches/{id}", BatchView, at)

    async def batches(
        self, *, limit: int, state: str | None, label: str | None
    ) -> AsyncIterator[BatchView]:
        params = _without_none(state=state, label=label)
        async for row in self.pages("/v1/batches", BatchView, params, limit=limit, latest=True):
            yield row

    async def command(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Tells a batch or an upload to do something, such as `/v1/batches/{id}/seal`."""
        await self.ask("POST", path, msgspec.Raw, json=body)

    async def download(self, path: str, params: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The bytes of an answer as they come, at one go, read as `read` does.

        Raises Refusal, Unreachable.
        """
        lag = _Lag()
        while True:
            try:
                async for piece in self._download(path, {**params, **lag.params}):
                    yield piece
                return
            except Refusal as refusal:
                lag.wait_longer(refusal)

    async def _download(self, path: str, params: Mapping[str, str]) -> AsyncIterator[bytes]:
        waits = Waits(self.connection)
        begun = False
        while True:
            request = self.session.get(self.server.url + path, params=params)
            try:
                async with self.connection.answer(request) as response:
                    if response.status >= 400:
                        raise refusal_of(response.status, await response.read())
                    begun = True
                    async for piece in response.content.iter_any():
                        yield piece
                    return
            except LOST as error:
                if begun:
                    raise self.connection.unreachable(error) from error
                await waits.lost(error)

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
        """Rows of a list, page by page; all of them where `limit` is 0.

        `cursor` names the parameter of the next page's cursor; `latest` reads as `read` does.
        """
        ask = self.read if latest else partial(self.ask, "GET")
        place: dict[str, str] = {}
        left = limit or None
        while True:
            size = str(min(PAGE, left) if left else PAGE)
            query = {**params, **place, "limit": size}
            page = await ask(path, Page, params=query)
            for item in page.items:
                yield msgspec.json.decode(item, type=row)
            left = left - len(page.items) if left else None
            if page.next is None or left == 0:
                return
            place = {cursor: str(page.next)}

    async def read(self, path: str, type: type[T], *, params: Mapping[str, str]) -> T:
        """Ask for what reflects everything that was recorded before.

        That holds for what another command, terminal or user did as well, so that no state is
        kept here. Raises Refusal, Unreachable.
        """
        lag = _Lag()
        while True:
            try:
                return await self.ask("GET", path, type, params={**params, **lag.params})
            except Refusal as refusal:
                lag.wait_longer(refusal)

    async def _as_of(self, path: str, type: type[T], at: str | None) -> T:
        """A row as it is, or as it was: that follows from the log alone."""
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
        """One request and its decoded answer. Raises Refusal, Unreachable."""
        body = None if json is None else msgspec.json.encode(json)
        sent = {**({} if body is None else JSON), **(headers or {})}
        waits = Waits(self.connection)
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
                    refusal = refusal_of(response.status, answer)
                    passing = response.status in PASSING and refusal.min_position is None
                    if not (passing and repeatable):
                        raise refusal
                    retry_after = response.headers.get("Retry-After")
                await waits.next(refusal, retry_after)
            except LOST as error:
                await waits.lost(error, repeatable=repeatable)


class _Lag:
    """The parameters of a read, while what the server shows is behind what was recorded."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + LAG_PATIENCE
        self.params = {"min_position": LATEST}

    def wait_longer(self, refusal: Refusal) -> None:
        """Ask for the same position again, not for a later one. Raises the refusal in the end."""
        if refusal.min_position is None or self._loop.time() > self._end:
            raise refusal
        if self.params["min_position"] == LATEST:
            tell_people(f"waiting until the server shows position {refusal.min_position}")
        self.params = {"min_position": str(refusal.min_position)}


def refusal_of(status: int, answer: bytes) -> Refusal:
    """The refusal that a problem document tells; any other body is quoted as it is."""
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem(detail=f"the server answered {status}")
    details = tuple(f"{one.pointer} {one.detail}".strip() for one in problem.errors)
    text = problem.detail or problem.title or f"the server answered {status}"
    repeated = all(one.detail in text for one in problem.errors)
    errors = () if repeated else details
    passing = status in (502, 503, 504) and problem.min_position is None
    kind = OutOfService if passing else Refusal
    refusal = kind(status, problem.code, text, errors, problem.min_position)
    refusal.free = problem.free
    return refusal


def _without_none(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}
