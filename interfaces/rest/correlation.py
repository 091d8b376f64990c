"""What ties one request to its answer, its log lines and its events: an id, and a trace."""

from __future__ import annotations

import re
from secrets import token_hex

from aiohttp import web
from aiohttp.typedefs import Handler
from structlog.contextvars import bind_contextvars, reset_contextvars

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
STARTED: web.RequestKey[bool] = web.RequestKey("response_started", bool)

_SANE = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# Source: W3C Trace Context, section 3.2; an id of zeros alone is invalid there.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


@web.middleware
async def correlation_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request an id: the client's `X-Request-ID` where that is sane, else a new one."""
    given = request.headers.get("X-Request-ID", "")
    request[REQUEST_ID] = given if _SANE.fullmatch(given) else token_hex(16)
    bound = bind_contextvars(request_id=request[REQUEST_ID])
    try:
        return await handler(request)
    finally:
        reset_contextvars(**bound)


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer, streamed ones included: its request id, and what keeps browsers careful.

    For the signal `on_response_prepare`.
    """
    request[STARTED] = True
    headers = response.headers
    if request_id := request.get(REQUEST_ID):
        headers["X-Request-ID"] = request_id
    headers["Server"] = "uptrail"  # which versions we run is nobody's business
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Cache-Control", "no-store")
    if "Content-Security-Policy" not in headers and response.content_type != "text/html":
        headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"


def traceparent_of(request: web.Request) -> str | None:
    """The W3C trace the client is in; a header that breaks the format is as good as none."""
    given = request.headers.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else None
