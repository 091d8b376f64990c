"""Reading of requests: bodies in chunks, as JSON and as NDJSON; path, query and header parameters.

Byte ranges follow RFC 9110 section 14: one range of bytes, or everything.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Self, TypeVar
from uuid import UUID

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from application.errors import NotFound
from application.transfers.errors import ClientDisconnected
from domain.file import has_control_characters
from interfaces.common.api_types import FieldProblem
from interfaces.common.problems import RETRY_SOON, Problem, bad_parameter, byte_position
from interfaces.common.server import connection_of
from interfaces.common.services import SERVICES

CONTINUE_PENDING: web.RequestKey[bool] = web.RequestKey("waits_for_100_continue", bool)


async def defer_100_continue(request: web.Request) -> None:
    """Put off `100 Continue` until the handler reads the body; the `expect_handler` of routes.

    aiohttp would send it before the request is authenticated and checked.
    """
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        raise Problem(417, "expectation_failed", "only Expect: 100-continue is understood")
    request[CONTINUE_PENDING] = True
    connection_of(request).suspend_body_deadline()


async def send_100_continue(request: web.Request) -> None:
    """Send `100 Continue` if the client waits for it."""
    if request.get(CONTINUE_PENDING):
        request[CONTINUE_PENDING] = False
        connection_of(request).resume_body_deadline()
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the final response has not begun


def reject_content_encoding(request: web.Request) -> None:
    """Raise a 415 Problem for a compressed body: offsets count the bytes as they are sent."""
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if coding != "identity":
        raise Problem(415, "content_encoding", "send the bytes without Content-Encoding")


class Body:
    """Iterator over the chunks of a body, uncopied, up to the last byte that arrived.

    If the connection breaks, raises ClientDisconnected, but only after the last byte. Also raises
    TransferAborted when the connection misses a deadline or its credential ends.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._stream = request.content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            await send_100_continue(self._request)
            # aiohttp does not report a connection that broke before the request was begun.
            if self._request.transport is None and not self._stream.is_eof():
                raise ConnectionResetError("the connection was lost")
            chunk = await self._stream.readany()
        except (OSError, HttpProcessingError, web.RequestPayloadError) as error:
            if rest := self._unread():
                return rest
            raise ClientDisconnected("the connection broke") from error
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def read_buffered(self) -> bytes:
        """Return the bytes that arrived and were not read yet, those in the socket included."""
        if self._request.get(CONTINUE_PENDING):
            return b""
        await asyncio.sleep(0)  # the loop looks at its sockets
        return self._unread()

    def _unread(self) -> bytes:
        """Return the buffered bytes, also of a stream that refuses reads after an exception."""
        error = self._stream.exception()
        self._stream.set_exception(None)  # type: ignore[arg-type]
        rest = self._stream.read_nowait()
        if error is not None:
            self._stream.set_exception(error)
        return rest


async def read_all(request: web.Request) -> bytes:
    """Read all of a body that is known to be small. Raises TransferAborted."""
    if request.content.is_eof():  # it arrived with the head: nothing to wait for
        return await request.content.read()
    parts = [chunk async for chunk in Body(request)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def single_header(request: web.Request, header: str) -> str | None:
    """Return the header as it was sent, None without it.

    Raises a 400 Problem for several that differ: choosing one could choose the wrong one, and a
    proxy in front may have read the other (RFC 9110 section 5.3).
    """
    lines = request.headers.getall(header, None)
    if lines is None:
        return None
    if len(lines) > 1 and len(set(lines)) > 1:
        raise bad_parameter(header, "must be sent once, not several times and each time otherwise")
    return lines[0]


_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


class Unsatisfiable(Exception):
    """The range lies outside of the content."""


class ByteRange(msgspec.Struct, frozen=True):
    """Bytes from `start` up to `end` (exclusive) of `size`."""

    start: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Parse a Range header; None for the whole content.

    A malformed header, another unit and several ranges are ignored, as RFC 9110 section 14.2
    allows. Raises Unsatisfiable.
    """
    found = _ONE_RANGE.fullmatch(header or "")
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= size or start == end:
        raise Unsatisfiable(f"bytes */{size}")
    return ByteRange(start, end, size)


NDJSON = "application/x-ndjson"
NDJSON_TYPES = (NDJSON, "application/ndjson", "application/jsonl")
MAX_LINE_BYTES = 64 * 1024  # bytes

T = TypeVar("T")


async def json_body(
    request: web.Request, decoder: msgspec.json.Decoder[T], *, limit: int | None = None
) -> T:
    """Read and decode a JSON body of at most `limit` bytes, by default `max_body`.

    Raises Problem: 415 for another media type, 413 beyond the limit, 400 if it is not JSON. Raises
    msgspec.ValidationError if its structure is invalid, which becomes a 422 with a pointer.
    """
    require_content_type(request, "application/json")
    return decode(await _read_limited(request, limit), decoder)


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode a JSON body. Raises the same as `json_body`."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise
    except RecursionError:
        raise malformed("is nested too deeply") from None
    except ValueError as error:
        # DecodeError is one, UnicodeDecodeError, and Python's limit on the digits of an integer.
        position = byte_position(body, error)
        raise malformed(f"is not JSON at byte {position}: {error}") from None


def malformed(detail: str) -> Problem:
    return Problem(400, "malformed_json", f"the body {detail}", errors=[FieldProblem("", detail)])


def require_content_type(request: web.Request, *types: str) -> None:
    """Raise a 415 Problem for a body of another type; without Content-Type any is assumed."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if encoding != "identity":
        raise Problem(415, "unsupported_media_type", "send the body without Content-Encoding")
    if hdrs.CONTENT_TYPE in request.headers and request.content_type not in types:
        raise Problem(
            415,
            "unsupported_media_type",
            f"send {' or '.join(types)}, not {request.content_type}",
            headers={"Accept": ", ".join(types)},
        )


async def iter_ndjson(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the lines of the body that are not blank, as they arrive; at most `max_body` bytes."""
    limit = request.app[SERVICES].settings.max_body
    received, rest = 0, b""
    await send_100_continue(request)
    async for chunk in _iter_body(request):
        received += len(chunk)
        if received > limit:
            raise too_large(limit)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield _checked_line(line)
        _checked_line(rest)
    if rest.strip():
        yield _checked_line(rest)


def too_large(limit: int) -> Problem:
    return Problem(413, "too_large", f"the body must be at most {limit} bytes")


async def _read_limited(request: web.Request, limit: int | None = None) -> bytes:
    limit = request.app[SERVICES].settings.max_body if limit is None else limit
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    await send_100_continue(request)
    body = bytearray()
    async for chunk in _iter_body(request):
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


async def _iter_body(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises IdleTimeout or BelowMinRate for a slow sender."""
    while chunk := await request.content.readany():
        yield chunk


def _checked_line(line: bytes) -> bytes:
    if len(line) > MAX_LINE_BYTES:
        raise Problem(413, "too_large", f"a line must be at most {MAX_LINE_BYTES} bytes")
    return line


MAX_POSITION = 2**63 - 1
LATEST = "latest"
"""Value of `min_position`: all events recorded before this request arrived, by any client."""

MAX_POSITION_WAIT = 5.0  # seconds that a reader waits for `min_position`
MAX_TEXT = 1024  # characters
MAX_CURSOR = 4096  # characters; that of a list of uploads holds a path

Choice = TypeVar("Choice", bound=StrEnum)


class Query:
    """Query parameters of a request: only those allowed are accepted, each once."""

    def __init__(self, request: web.Request, allowed: tuple[str, ...]) -> None:
        self._values = request.query
        for name in self._values:
            if name not in allowed:
                known = ", ".join(allowed) or "none"
                raise bad_parameter(name[:MAX_TEXT], f"is not a parameter here; known: {known}")
            if len(self._values.getall(name)) > 1:
                raise bad_parameter(name, "is given more than once")

    def text(self, name: str, *, most: int = MAX_TEXT) -> str | None:
        value = self._values.get(name)
        if value is not None and (len(value) > most or has_control_characters(value)):
            raise bad_parameter(name, f"must be at most {most} printable characters")
        return value

    def integer(self, name: str, default: int, *, low: int = 0, high: int = MAX_POSITION) -> int:
        text = self.text(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise bad_parameter(name, f"must be a whole number from {low} to {high}")
        if not low <= int(text) <= high:
            raise bad_parameter(name, f"must be from {low} to {high}")
        return int(text)

    def choice(self, name: str, choices: type[Choice]) -> Choice | None:
        text = self.text(name)
        try:
            return None if text is None else choices(text)
        except ValueError:
            raise bad_parameter(name, f"must be one of {', '.join(choices)}") from None

    def position_or_time(self, name: str) -> int | datetime | None:
        """Return a position, or a time with its zone (RFC 3339)."""
        text = self.text(name)
        if text is None or (text.isascii() and text.isdecimal()):
            return None if text is None else self.integer(name, 0)
        try:
            # A `+` that was not escaped arrives as a blank.
            moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise bad_parameter(name, "must be a position, or a time such as 2026-01-31T12:00:00Z")
        return moment


def path_id(request: web.Request, name: str = "id") -> UUID:
    """Return the id in the path. Raises NotFound if it is malformed."""
    text = request.match_info[name]
    try:
        id = UUID(text)
    except ValueError:
        raise NotFound("there is no such thing") from None
    if str(id) != text.lower():
        raise NotFound("there is no such thing")
    return id


async def wait_for_min_position(request: web.Request, query: Query) -> int:
    """Return the position the read model has reached, once that is `min_position` at least.

    Raises a 504 Problem after a few seconds.
    """
    queries = request.app[SERVICES].queries
    least = await least_position(request, query)
    if least:
        try:
            await queries.wait_for(least, timeout=MAX_POSITION_WAIT)
        except TimeoutError:
            raise not_reached(least, await queries.position()) from None
    return await queries.position()


async def least_position(request: web.Request, query: Query) -> int:
    """Return the position that the response must reflect; 0 where the request names none.

    `latest` is resolved to the end of the log, once, so that waiting for it ends.
    """
    text = query.text("min_position")
    if text == LATEST:
        return await request.app[SERVICES].log.head()
    if text is not None and not (text.isascii() and text.isdecimal()):
        message = f"must be a position (a whole number from 0 to {MAX_POSITION}), or {LATEST}"
        raise bad_parameter("min_position", message)
    return query.integer("min_position", 0)


def not_reached(least: int, reached: int) -> Problem:
    """Return a 504 whose member `min_position` is the value to repeat the request with."""
    return Problem(
        504,
        "position_not_reached",
        f"position {least} is not reflected yet, only {reached}; ask again with it as min_position",
        headers=RETRY_SOON,
        members={"min_position": least, "position": reached},
    )
