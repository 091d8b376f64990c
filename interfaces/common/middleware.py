"""Middleware and signals for every request: request id and trace, response headers, CORS, metrics.

Source of the CORS rules: https://fetch.spec.whatwg.org, section 3.3 (CORS protocol).
"""

from __future__ import annotations

import re
import time
from secrets import token_hex

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from structlog.contextvars import bind_contextvars, reset_contextvars

from infrastructure.telemetry import Metrics
from interfaces.common.services import SERVICES

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
STARTED: web.RequestKey[bool] = web.RequestKey("response_started", bool)

_REQUEST_ID_FORMAT = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# Source: W3C Trace Context, section 3.2; an id of zeros alone is invalid there.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


@web.middleware
async def correlation_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id: the client's `X-Request-ID` if well-formed, else a new one."""
    given = request.headers.get("X-Request-ID", "")
    request[REQUEST_ID] = given if _REQUEST_ID_FORMAT.fullmatch(given) else token_hex(16)
    bound = bind_contextvars(request_id=request[REQUEST_ID])
    try:
        return await handler(request)
    finally:
        reset_contextvars(**bound)


async def add_response_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the request id and security headers to every response, streamed ones included.

    For the signal `on_response_prepare`.
    """
    request[STARTED] = True
    headers = response.headers
    if request_id := request.get(REQUEST_ID):
        headers["X-Request-ID"] = request_id
    headers["Server"] = "uptrail"  # without versions, which would help attackers
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Cache-Control", "no-store")
    if "Content-Security-Policy" not in headers and response.content_type != "text/html":
        headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"


def traceparent_of(request: web.Request) -> str | None:
    """Return the client's W3C trace context; None without one or if it is malformed."""
    given = request.headers.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else None


ANY = "*"
MAX_CUSTOM_HEADERS = 64  # headers that a preflight requests and `*` allows
PREFLIGHT_MAX_AGE = "86400"  # seconds that a browser caches a preflight; some cap it at less

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110 section 5.6.2

ALLOWED_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
ALLOWED_HEADERS = ", ".join(
    (
        "Accept",
        "Authorization",
        "Baggage",
        "Cache-Control",
        "Content-Digest",
        "Content-Type",
        "Idempotency-Key",
        "If-Match",
        "If-None-Match",
        "If-Range",
        "Last-Event-ID",
        "Range",
        "Repr-Digest",
        "Traceparent",
        "Tracestate",
        "Tus-Resumable",
        "Upload-Checksum",
        "Upload-Complete",
        "Upload-Concat",
        "Upload-Defer-Length",
        "Upload-Draft-Interop-Version",
        "Upload-Incomplete",
        "Upload-Length",
        "Upload-Metadata",
        "Upload-Offset",
        "Want-Repr-Digest",
        "X-CSRF-Token",
        "X-HTTP-Method-Override",
        "X-Request-ID",
        "X-Requested-With",
        "X-XSRF-Token",
    )
)
EXPOSED_HEADERS = ", ".join(
    (
        "Accept-Ranges",
        "Content-Disposition",
        "Content-Range",
        "ETag",
        "Link",
        "Location",
        "Repr-Digest",
        "Retry-After",
        "Tus-Checksum-Algorithm",
        "Tus-Extension",
        "Tus-Max-Size",
        "Tus-Resumable",
        "Tus-Version",
        "Upload-Complete",
        "Upload-Concat",
        "Upload-Defer-Length",
        "Upload-Draft-Interop-Version",
        "Upload-Expires",
        "Upload-Incomplete",
        "Upload-Length",
        "Upload-Limit",
        "Upload-Metadata",
        "Upload-Offset",
        "Uptrail-Position",
        "X-Request-ID",
    )
)


async def allow_origins(request: web.Request, response: web.StreamResponse) -> None:
    """Add CORS headers to every response, errors and preflights included.

    For the signal `on_response_prepare`. A configured origin may use a browser's session; with `*`
    any origin may send requests, but only with a key of its own.
    """
    allowed = request.app[SERVICES].settings.allowed_origins
    if not allowed:
        return
    headers = response.headers
    headers[hdrs.VARY] = ", ".join(filter(None, (headers.get(hdrs.VARY), hdrs.ORIGIN)))
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or not (origin in allowed or ANY in allowed):
        return
    if origin in allowed:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
    else:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = ANY
    headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS
    if hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ALLOWED_METHODS
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _allowed_headers(request)
        headers[hdrs.VARY] += f", {hdrs.ACCESS_CONTROL_REQUEST_HEADERS}"
        headers[hdrs.ACCESS_CONTROL_MAX_AGE] = PREFLIGHT_MAX_AGE


def _allowed_headers(request: web.Request) -> str:
    """Return the headers of our protocols and settings; with `*` also those the browser requests.

    A literal `*` would not do: it means none where a page sends credentials, and never means
    Authorization (Fetch standard, section 3.3.3).
    """
    configured = request.app[SERVICES].settings.cors_allowed_headers
    more = [name for name in configured if name != ANY]
    if ANY in configured:
        requested = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").split(",")
        names = [name.strip() for name in requested[:MAX_CUSTOM_HEADERS]]
        more += [name for name in names if _TOKEN.fullmatch(name)]
    known = {name.lower() for name in ALLOWED_HEADERS.split(", ")}
    custom = {name.lower(): name for name in more if name.lower() not in known}
    return ", ".join((ALLOWED_HEADERS, *custom.values()))


METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left before its response

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@web.middleware
async def metrics_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count and time every request, by route and known method.

    Values that clients choose freely are no labels: they would grow the registry without bound.
    """
    metrics = request.app[METRICS]
    began, status = time.monotonic(), CLIENT_CLOSED_REQUEST
    metrics.begin()
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        resource = request.match_info.route.resource
        metrics.end(
            request.method if request.method in _METHODS else "other",
            resource.canonical if resource is not None else "none",
            status,
            time.monotonic() - began,
            request.content.total_bytes,
        )
