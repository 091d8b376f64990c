"""How a request was sent to the proxy in front of us, where the settings say that there is one.

Sources: RFC 7239 (Forwarded); X-Forwarded-Proto, -Host and -Prefix are what proxies sent before.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, IPv6Network, ip_address

import msgspec
from aiohttp import web

from interfaces.services import SERVICES

_PAIR = re.compile(r'\s*([!#$%&\'*+.^_`|~\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))\s*', re.ASCII)
_HOST = re.compile(r"[\w.-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?", re.ASCII)
_LAST_FOR = re.compile(r'for=(?:"([^"]*)"|([^\s;,"]*))[^,]*$', re.ASCII | re.IGNORECASE)
_PREFIX = re.compile(r"(/[\w.~-]+)*", re.ASCII)


class Front(msgspec.Struct, frozen=True):
    """Where our paths are found from outside; `prefix` begins with a slash or is empty."""

    scheme: str
    host: str
    prefix: str = ""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}{self.prefix}"


def front_of(request: web.Request) -> Front | None:
    """What the proxy says, if proxies are to be believed and it says anything that makes sense.

    Anybody can send these headers: they are read only where `trust_forwarded` is set.
    """
    if not request.app[SERVICES].settings.trust_forwarded:
        return None
    told = _forwarded(request) or _x_forwarded(request)
    scheme = told.get("proto", request.scheme).lower()
    host = told.get("host") or request.host
    prefix = told.get("prefix", "").rstrip("/")
    if scheme not in ("http", "https") or not _HOST.fullmatch(host):
        return None
    return Front(scheme, host, prefix if _PREFIX.fullmatch(prefix) else "")


def outside(request: web.Request, path: str) -> str:
    """One of our paths as the client can reach it: the path alone, which holds behind any proxy
    that changes none, or the whole address where a proxy is believed."""
    front = front_of(request)
    return path if front is None else f"{front.url}{path}"


def client_network(request: web.Request) -> str:
    """The network that the client is in, for rate limits: an IPv4 address, or the /64 of an IPv6
    one, which is what one subscriber has.

    Behind a trusted proxy that is what the proxy appended: the last address, since those before it
    are what the client sent. X-Forwarded-For goes first, because proxies that set only this one
    pass a client's Forwarded on.
    """
    address = request.remote or ""
    if request.app[SERVICES].settings.trust_forwarded:
        address = _forwarded_for(request) or address
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
    """The address that the nearest proxy was connected from, without a port."""
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
    """The first element of Forwarded: that of the proxy which is nearest to the client."""
    first = request.headers.get("Forwarded", "")
    told: dict[str, str] = {}
    place = 0
    while match := _PAIR.match(first, place):
        value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        told.setdefault(match[1].lower(), value)
        place = match.end()
        if first[place : place + 1] != ";":
            break
        place += 1
    return told


def _x_forwarded(request: web.Request) -> dict[str, str]:
    names = {
        "proto": "X-Forwarded-Proto",
        "host": "X-Forwarded-Host",
        "prefix": "X-Forwarded-Prefix",
    }
    told = {name: request.headers.get(header, "") for name, header in names.items()}
    return {name: text.partition(",")[0].strip() for name, text in told.items() if text}
