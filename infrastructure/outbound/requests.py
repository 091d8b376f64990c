"""Requests to addresses that people configured: never to the inside of our own network (SSRF).

A destination is judged three times: its normalised host before anything happens, every address
that its name resolves to, and the address of each socket that is about to connect. Proxies of the
environment are not used and redirects are not followed, so nothing else chooses where a request
goes.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import (
    AddrInfoType,
    ClientConnectorError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
    ThreadedResolver,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from infrastructure.outbound.destinations import (
    PrivateAddress,
    parse_destination,
    require_public_address,
)

CONNECTIONS = 64
CONNECT = 10.0  # seconds
MAX_ANSWER = 64 * 1024  # bytes


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

        Raises BadDestination, PrivateAddress, TimeoutError after `within` seconds,
        aiohttp.ClientError.
        """
        destination = parse_destination(url)
        if not self._private:
            destination.require_public()
        timeout = ClientTimeout(total=within, sock_connect=CONNECT)
        try:
            return await self._exchange(destination.url, body, headers, timeout, most)
        except ClientConnectorError as error:
            if isinstance(error.os_error, PrivateAddress):
                raise error.os_error from None
            raise

    async def _exchange(
        self, url: URL, body: bytes, headers: dict[str, str], timeout: ClientTimeout, most: int
    ) -> Reply:
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
    connector = (
        TCPConnector(resolver=ThreadedResolver(), limit=CONNECTIONS)
        if private
        else TCPConnector(
            resolver=PublicResolver(ThreadedResolver()),
            socket_factory=open_public_socket,
            limit=CONNECTIONS,
        )
    )
    async with ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        trust_env=False,  # a proxy would resolve and connect in our place
        auto_decompress=False,  # a small answer cannot turn into a large one
        headers={"User-Agent": "Uptrail", "Accept-Encoding": "identity"},
    ) as session:
        yield Outbound(session, private)


class PublicResolver(AbstractResolver):
    """Resolver that refuses a name if any of its addresses is private. Raises PrivateAddress."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for one in found:
            require_public_address(one["host"], host)
        return found

    async def close(self) -> None:
        await self._inner.close()


def open_public_socket(info: AddrInfoType) -> socket.socket:
    """Return a socket for an address about to be connected to. Raises PrivateAddress.

    This is the last look, at what the kernel will be given: it holds whatever a parser, a cache or
    a resolver made of the URL before.
    """
    family, kind, protocol, _, address = info
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise PrivateAddress("only addresses of the internet are connected to")
    host: Any = address[0]
    require_public_address(host, host)
    return socket.socket(family=family, type=kind, proto=protocol)
