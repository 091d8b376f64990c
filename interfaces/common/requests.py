"""Parsing of request bodies (JSON, NDJSON) and of path, query and header parameters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

import msgspec
from aiohttp import hdrs, web

from application.errors import NotFound
from domain.file import has_control_characters
from interfaces.common.api_types import FieldProblem
from interfaces.common.body import send_100_continue
from interfaces.common.problems import RETRY_SOON, Problem, bad_parameter, byte_position
from interfaces.common.services import SERVICES

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
