"""The public URL of this server: the address under which a client reaches our paths.

Sources: RFC 7239 (Forwarded); RFC 9112 section 3.2 (Host). X-Forwarded-Proto, -Host and -Prefix
are what proxies send that do not know Forwarded.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from yarl import URL

from infrastructure.settings import Settings
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.services import SERVICES

_PAIR = re.compile(r'\s*([!#$%&\'*+.^_`|~\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))\s*', re.ASCII)
_HOST = re.compile(r"[\w.-]{1,255}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?", re.ASCII)
_LAST_FOR = re.compile(r'for=(?:"([^"]*)"|([^\s;,"]*))[^,]*$', re.ASCII | re.IGNORECASE)
_PREFIX = re.compile(r"(/[\w.~-]+)*", re.ASCII)

_log = structlog.get_logger(__name__)
_warned = False


class ForwardedOrigin(msgspec.Struct, frozen=True):
    """Public origin of this server behind a proxy; `prefix` begins with a slash or is empty."""

    scheme: str
    host: str
    prefix: str = ""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}{self.prefix}"


def public_url(request: web.Request, path: str) -> str:
    """Return one of our paths as the absolute URL under which this client reaches it."""
    return f"{public_base_url(request.app[SERVICES].settings, request)}{path}"


def public_base_url(
    settings: Settings, request: web.Request | None = None, *, local_url: str = ""
) -> str:
    """Return the URL of our root as clients reach it, without a slash at the end.

    This is the setting `public_url`; without it, what a trusted proxy forwards; without that, the
    Host of the request; and for a client of HTTP/1.0 that sends none, the address of the socket it
    is connected to. Where there is no request, as for links in webhooks, it is `local_url` in place
    of these, which may be empty.
    """
    if settings.public_url:
        return _normalised(settings.public_url)
    if request is None:
        return local_url.rstrip("/")
    if settings.trust_forwarded:
        front = forwarded_origin(request)
        if front is not None:
            return front.url
    else:
        _warn_of_untrusted(request)
    host = request.headers.get(hdrs.HOST) or _socket_address(request)
    return f"{request.scheme}://{host}" if host else ""


def configured_origin(request: web.Request) -> str | None:
    """Return the origin of the setting `public_url`, None without it."""
    configured = request.app[SERVICES].settings.public_url
    return None if configured is None else str(URL(_normalised(configured)).origin())


@web.middleware
async def host_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Reject an invalid Host (RFC 9112 section 3.2): URLs are built from it.

    Also reject transfer codings other than chunked (section 6.1): aiohttp does not decode them, so
    a compressed file would be stored, and acknowledged, as if it were the file.
    """
    host = request.headers.get(hdrs.HOST)
    if host and not _HOST.fullmatch(host):
        raise bad_parameter("Host", "must be a host name or address, with or without a port")
    coding = request.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and coding.strip().lower() != "chunked":
        raise Problem(501, "transfer_coding", "send the body with Transfer-Encoding: chunked alone")
    return await handler(request)


def forwarded_origin(request: web.Request) -> ForwardedOrigin | None:
    """Return the origin that a trusted proxy forwards; None without one, or if it is malformed.

    Any client can send these headers: they are read only where `trust_forwarded` is set.
    """
    if not request.app[SERVICES].settings.trust_forwarded:
        return None
    # Merged by field: a proxy that sets X-Forwarded-Proto may pass a client's Forwarded on.
    forwarded = {name: text for name, text in _forwarded(request).items() if text}
    values = {**_x_forwarded(request), **forwarded}
    if not values:
        return None
    scheme = values.get("proto", request.scheme).lower()
    host = values.get("host") or request.headers.get(hdrs.HOST) or _socket_address(request)
    prefix = values.get("prefix", "").rstrip("/")
    if scheme not in ("http", "https") or not _HOST.fullmatch(host):
        return None
    return ForwardedOrigin(scheme, host, prefix if _PREFIX.fullmatch(prefix) else "")


@lru_cache(maxsize=8)
def _normalised(url: str) -> str:
    """Return the URL in ASCII: an internationalised host in Punycode, a path percent-encoded."""
    return str(URL(url)).rstrip("/")


def _socket_address(request: web.Request) -> str:
    """Return the local address of the connection; empty once it is closed."""
    transport = request.transport
    address = None if transport is None else transport.get_extra_info("sockname")
    if not isinstance(address, tuple):
        return ""
    host, port = str(address[0]).partition("%")[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _warn_of_untrusted(request: web.Request) -> None:
    """Log once that forwarding headers arrive although `trust_forwarded` is not set."""
    global _warned
    headers = request.headers
    if _warned:
        return
    if "X-Forwarded-Proto" in headers or "X-Forwarded-Host" in headers or "Forwarded" in headers:
        _warned = True
        _log.warning(
            "forwarding_headers_ignored",
            advice="behind a proxy set public_url, or trust_forwarded if it sets these headers",
        )


def client_network(request: web.Request) -> str:
    """Return the client's network, for rate limits: an IPv4 address, or the /64 of an IPv6 one.

    A subscriber usually has one IPv4 address or one /64. Behind a trusted proxy it is the address
    that the proxy appended, the last one: those before it are sent by the client. X-Forwarded-For
    takes precedence, because proxies that set only this one pass a client's Forwarded on.
    """
    address = request.remote or ""
    if request.app[SERVICES].settings.trust_forwarded:
        address = _forwarded_for(request) or address
    return _network_of(address)


@lru_cache(maxsize=1024)  # most requests come from few clients, and parsing an address is slow
def _network_of(address: str) -> str:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Network((parsed, 64), strict=False))
    return str(parsed)


def _forwarded_for(request: web.Request) -> str | None:
    """Return the address that connected to the nearest proxy, without a port."""
    lines = request.headers.getall("X-Forwarded-For", [])
    text = lines[-1].rpartition(",")[2] if lines else ""
    if not lines:
        elements = request.headers.getall("Forwarded", [""])[-1]
        found = _LAST_FOR.search(elements)
        text = (found[1] or found[2]) if found else ""
    text = text.strip()
    bracketed = text.startswith("[")
    text = text[1:].partition("]")[0] if bracketed else text
    if not bracketed and text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ip_address(text))
    except ValueError:
        return None


def _forwarded(request: web.Request) -> dict[str, str]:
    """Parse the first element of Forwarded, from the proxy nearest to the client."""
    first = request.headers.get("Forwarded", "")
    fields: dict[str, str] = {}
    at = 0
    while match := _PAIR.match(first, at):
        value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        fields.setdefault(match[1].lower(), value)
        at = match.end()
        if first[at : at + 1] != ";":
            break
        at += 1
    return fields


def _x_forwarded(request: web.Request) -> dict[str, str]:
    names = {
        "proto": "X-Forwarded-Proto",
        "host": "X-Forwarded-Host",
        "prefix": "X-Forwarded-Prefix",
    }
    values = {name: request.headers.get(header, "") for name, header in names.items()}
    return {name: text.partition(",")[0].strip() for name, text in values.items() if text}
