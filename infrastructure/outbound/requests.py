"""Requests to addresses that people configured: never to the inside of our own network (SSRF).

Addresses are judged after their names were resolved, and the connection goes to the very
address that was judged: a name cannot mean one thing to the check and another to the socket.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from application.addresses import is_public, literal_in

CONNECTIONS = 64
CONNECT = 10.0  # seconds
MAX_ANSWER = 64 * 1024  # bytes


class PrivateAddress(Exception):
    """The service is at an address inside of a network, which the settings do not allow."""


class AnswerTooLong(Exception):
    """The service says more than anybody wants to know."""


class Reply(msgspec.Struct, frozen=True):
    """An answer, redirects as they are; `whole` says whether `body` is all of it.

    `retry_after` is the header of that name (RFC 9110 section 10.2.3), as it came.
    """

    status: int
    body: bytes
    whole: bool
    retry_after: str | None = None


class Outbound:
    """Sends requests; `private` allows addresses that the internet cannot reach."""

    def __init__(self, session: ClientSession, private: bool) -> None:
        self._session = session
        self._private = private

    async def post(
        self, url: str, body: bytes, headers: dict[str, str], within: float
    ) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises AnswerTooLong, and what `send` raises.
        """
        reply = await self.send(url, body, headers, within, most=MAX_ANSWER)
        if not reply.whole:
            raise AnswerTooLong(f"the answer has more than {MAX_ANSWER} bytes")
        return reply.status, reply.body

    async def send(
        self, url: str, body: bytes, headers: dict[str, str], within: float, *, most: int
    ) -> Reply:
        """The answer with the first `most` bytes of its body; the rest is not waited for.

        Raises PrivateAddress, TimeoutError after `within` seconds, aiohttp.ClientError.
        """
        if not self._private:
            _require_public_literal(url)
        timeout = ClientTimeout(total=within, sock_connect=CONNECT)
        async with self._session.post(
            url, data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            retry_after = response.headers.get("Retry-After")
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > most:
                    response.close()  # the connection with it: nobody reads on
                    return Reply(response.status, bytes(answer[:most]), False, retry_after)
            return Reply(response.status, bytes(answer), True, retry_after)


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


def _require_public_literal(url: str) -> None:
    """A literal address needs no resolver, so the resolver cannot judge it."""
    literal = literal_in(url)
    if literal is not None:
        require_public(str(literal), urlsplit(url).hostname or "")
