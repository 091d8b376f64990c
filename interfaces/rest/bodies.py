"""Bodies of requests: read within bounds, decoded strictly, faults pointed at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from aiohttp import hdrs, web

from interfaces.rest.pointers import byte_position
from interfaces.rest.problems import Complaint, Problem
from interfaces.services import SERVICES
from interfaces.uploads.body import go_ahead

NDJSON = "application/x-ndjson"
NDJSON_TYPES = (NDJSON, "application/ndjson", "application/jsonl")
MAX_LINE = 64 * 1024  # bytes

T = TypeVar("T")


async def json_body(
    request: web.Request, decoder: msgspec.json.Decoder[T], *, limit: int | None = None
) -> T:
    """The body as the decoder's type; at most `limit` bytes, by default `max_body`.

    Raises Problem: 415 for another media type, 413 beyond the limit, 400 where it is no JSON.
    Raises msgspec.ValidationError where it is JSON of another shape: a 422 with its pointer.
    """
    expect_media(request, "application/json")
    return decode(await _whole(request, limit), decoder)


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The bytes as the decoder's type; raises like `json_body`."""
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
    return Problem(400, "malformed_json", f"the body {detail}", errors=[Complaint("", detail)])


def expect_media(request: web.Request, *types: str) -> None:
    """Raises a 415 Problem for a body of another type; one without a type is taken for JSON."""
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


async def lines(request: web.Request) -> AsyncIterator[bytes]:
    """The lines of the body that are not blank, as they arrive; at most `max_body` bytes in all."""
    limit = request.app[SERVICES].settings.max_body
    taken, rest = 0, b""
    await go_ahead(request)
    async for chunk in _arriving(request):
        taken += len(chunk)
        if taken > limit:
            raise too_large(limit)
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield _short(line)
        _short(rest)
    if rest.strip():
        yield _short(rest)


def too_large(limit: int) -> Problem:
    return Problem(413, "too_large", f"the body must be at most {limit} bytes")


async def _whole(request: web.Request, limit: int | None = None) -> bytes:
    limit = request.app[SERVICES].settings.max_body if limit is None else limit
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    await go_ahead(request)
    body = bytearray()
    async for chunk in _arriving(request):
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


async def _arriving(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises Stalled for a sender that is silent, or slow, for too long."""
    while chunk := await request.content.readany():
        yield chunk


def _short(line: bytes) -> bytes:
    if len(line) > MAX_LINE:
        raise Problem(413, "too_large", f"a line must be at most {MAX_LINE} bytes")
    return line
