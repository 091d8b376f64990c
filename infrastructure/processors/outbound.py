"""Requests to addresses that people configured: never to the inside of our own network (SSRF).

Addresses are judged after their names were resolved, and the connection goes to the very
address that was judged: a name cannot mean one thing to the check and another to the socket.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

CONNECTIONS = 64
CONNECT = 10.0  # seconds
MAX_ANSWER = 64 * 1024  # bytes

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address


class PrivateAddress(Exception):
    """The service is at an address inside of a network, which the settings do not allow."""


class AnswerTooLong(Exception):
    """The service says more than anybody wants to know."""


class Outbound:
    """Sends requests; `private` allows addresses that the internet cannot reach."""

    def __init__(self, session: ClientSession, private: bool) -> None:
        self._session = session
        self._private = private

    async def post(
        self, url: str, body: bytes, headers: dict[str, str], within: float
    ) -> tuple[int, bytes]:
        """Status and body of the answer, redirects as they are.

        Raises PrivateAddress, AnswerTooLong, TimeoutError after `within` seconds,
        aiohttp.ClientError.
        """
        if not self._private:
            _require_public_literal(url)
        timeout = ClientTimeout(total=within, sock_connect=CONNECT)
        async with self._session.post(
            url, data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > MAX_ANSWER:
                    raise AnswerTooLong(f"the answer has more than {MAX_ANSWER} bytes")
            return response.status, bytes(answer)


@asynccontextmanager
async def open_outbound(private: bool) -> AsyncIterator[Outbound]:
    resolver = ThreadedResolver() if private else PublicResolver(ThreadedResolver())
    connector = TCPConnector(resolver=resolver, limit=CONNECTIONS)
    async with ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,  # a small answer cannot turn into a large one
        headers={"User-Agent": "Uptrail", "Accept-Encoding": "identity"},
    ) as session:
        yield Outbound(session, private)


class PublicResolver(AbstractResolver):
    """Resolves to addresses of the internet only. Raises PrivateAddress."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for one in found:
            require_public(one["host"], host)
        return found

    async def close(self) -> None:
        await self._inner.close()


def require_public(address: str, host: str) -> None:
    """Raises PrivateAddress for what is not on the internet: `host` is what people called it."""
    if not is_public(ip_address(address.partition("%")[0])):
        raise PrivateAddress(
            f"{host} is at {address}, a private address: `allow_private_addresses` is off"
        )


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """By the registries of IANA; an IPv4 address inside of an IPv6 one counts as itself."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _require_public_literal(url: str) -> None:
    """A literal address needs no resolver, so the resolver cannot judge it."""
    host = urlsplit(url).hostname or ""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return
    require_public(host, host)
