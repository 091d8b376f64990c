"""How a request was sent to the proxy in front of us, where the settings say that there is one.

Sources: RFC 7239 (Forwarded); X-Forwarded-Proto, -Host and -Prefix are what proxies sent before.
"""

from __future__ import annotations

import re

import msgspec
from aiohttp import web

from interfaces.services import SERVICES

_PAIR = re.compile(r'\s*([!#$%&\'*+.^_`|~\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))\s*', re.ASCII)
_HOST = re.compile(r"[\w.-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?", re.ASCII)
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
