"""Validation of the host in a configured URL, parsed exactly as the HTTP client parses it.

Everything is decided on what `yarl` makes of the URL (IDNA, NFKC and percent-encoding applied),
and the very same `yarl.URL` is handed to the client, so that both mean one host.
"""

from __future__ import annotations

import binascii
import re
import socket
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from secrets import token_bytes
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
from standardwebhooks import Webhook
from yarl import URL

from application.public_addresses import is_public

MAX_HOST = 253  # characters of a DNS name (RFC 1035)

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# A name whose last label looks like a number is read as an IPv4 address by some resolvers, in
# octal, hexadecimal or with fewer parts (WHATWG URL, "ends in a number").
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class BadDestination(ValueError):
    """A URL has no host that a request can be sent to."""


class PrivateAddress(OSError):
    """A host is not on the public internet, and the settings allow no others."""


class Destination(msgspec.Struct, frozen=True):
    """A URL with its normalised host, and the address where the host is a literal one."""

    url: URL
    host: str
    address: IPv4Address | IPv6Address | None

    def require_public(self) -> None:
        """Raise PrivateAddress if no name resolution could make this destination public."""
        if self.address is not None:
            require_public_address(str(self.address), self.host)
        name = self.host.removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 section 6.3
            raise PrivateAddress(f"{self.host} is this machine: `allow_private_addresses` is off")


def parse_destination(url: str) -> Destination:
    """Return where a URL leads. Raises BadDestination."""
    try:
        parsed = URL(url)
        host, _ = parsed.raw_host, parsed.port
    except ValueError as error:
        raise BadDestination(str(error)) from None
    if parsed.scheme not in ("http", "https") or not host:
        raise BadDestination("must look like https://example.com/hook")
    if parsed.port == 0:
        raise BadDestination("has port 0, where nothing listens")
    if ":" in host:
        return Destination(parsed, host, _ipv6_address(host))
    host = host.lower()
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return Destination(parsed, host, _ipv4_address(host))
    if len(host) > MAX_HOST or not all(map(_LABEL.fullmatch, labels)):
        raise BadDestination(f"has a host that is no name: {host!r}")
    return Destination(parsed, host, None)


def require_public_address(address: str, host: str) -> None:
    """Raise PrivateAddress if the internet cannot reach `address`, which `host` stands for."""
    if not is_public(ip_address(address.partition("%")[0])):
        raise PrivateAddress(
            f"{host} is at {address}, a private address: `allow_private_addresses` is off"
        )


def _ipv6_address(host: str) -> IPv6Address:
    if "%" in host:
        raise BadDestination("has a zone id, which means something on one machine only")
    try:
        return IPv6Address(host)
    except ValueError:
        raise BadDestination(f"has a host that is no IPv6 address: {host!r}") from None


def _ipv4_address(host: str) -> IPv4Address:
    try:
        return IPv4Address(host)  # refuses leading zeros, fewer parts and other bases
    except ValueError:
        message = f"has a host that is no address of four decimal numbers: {host!r}"
        raise BadDestination(message) from None


# Requests to addresses that people configured: never to the inside of our own network (SSRF).
#
# A destination is judged three times: its normalised host before anything happens, every address
# that its name resolves to, and the address of each socket that is about to connect. Proxies of
# the environment are not used and redirects are not followed, so nothing else chooses where a
# request goes.

MAX_CONNECTIONS = 64
CONNECT_TIMEOUT = 10.0  # seconds
MAX_RESPONSE_BYTES = 64 * 1024  # bytes


class ResponseTooLarge(Exception):
    """The response exceeds the size limit."""


class Reply(msgspec.Struct, frozen=True):
    """HTTP response, redirects not followed; `whole`: `body` is complete.

    `retry_after` is the header of that name (RFC 9110 section 10.2.3), as it came.
    """

    status: int
    body: bytes
    whole: bool
    retry_after: str | None = None


class SafeHttpClient:
    """Sends requests; `private` allows addresses that the internet cannot reach."""

    def __init__(self, session: ClientSession, private: bool) -> None:
        self._session = session
        self._private = private

    async def post(
        self, url: str, body: bytes, headers: dict[str, str], timeout: float
    ) -> tuple[int, bytes]:
        """Return status and body of the answer.

        Raises ResponseTooLarge, and what `send` raises.
        """
        reply = await self.send(url, body, headers, timeout, max_bytes=MAX_RESPONSE_BYTES)
        if not reply.whole:
            raise ResponseTooLarge(f"the answer has more than {MAX_RESPONSE_BYTES} bytes")
        return reply.status, reply.body

    async def send(
        self, url: str, body: bytes, headers: dict[str, str], timeout: float, *, max_bytes: int
    ) -> Reply:
        """Return the answer with the first `max_bytes` bytes of its body; do not wait for the rest.

        Raises BadDestination, PrivateAddress, TimeoutError after `timeout` seconds,
        aiohttp.ClientError.
        """
        destination = parse_destination(url)
        if not self._private:
            destination.require_public()
        limits = ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT)
        try:
            return await self._exchange(destination.url, body, headers, limits, max_bytes)
        except ClientConnectorError as error:
            if isinstance(error.os_error, PrivateAddress):
                raise error.os_error from None
            raise

    async def _exchange(
        self, url: URL, body: bytes, headers: dict[str, str], limits: ClientTimeout, max_bytes: int
    ) -> Reply:
        async with self._session.post(
            url, data=body, headers=headers, timeout=limits, allow_redirects=False
        ) as response:
            retry_after = response.headers.get("Retry-After")
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > max_bytes:
                    response.close()  # and its connection: the rest is not read
                    return Reply(response.status, bytes(answer[:max_bytes]), False, retry_after)
            return Reply(response.status, bytes(answer), True, retry_after)


@asynccontextmanager
async def open_safe_client(private: bool) -> AsyncIterator[SafeHttpClient]:
    connector = (
        TCPConnector(resolver=ThreadedResolver(), limit=MAX_CONNECTIONS)
        if private
        else TCPConnector(
            resolver=PublicResolver(ThreadedResolver()),
            socket_factory=open_public_socket,
            limit=MAX_CONNECTIONS,
        )
    )
    async with ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        trust_env=False,  # a proxy would resolve and connect in our place
        auto_decompress=False,  # a small answer cannot turn into a large one
        headers={"User-Agent": "Uptrail", "Accept-Encoding": "identity"},
    ) as session:
        yield SafeHttpClient(session, private)


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


# Signatures of outgoing requests, by Standard Webhooks version 1 (symmetric signatures).

SECRET_PREFIX = "whsec_"  # noqa: S105
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
NEW_KEY_BYTES = 32


def require_secret(secret: str) -> None:
    """Raise ValueError unless the text is `whsec_<base64>`; the error never shows the secret."""
    try:
        key = b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not (secret.startswith(SECRET_PREFIX) and MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES):
        raise ValueError(
            f"must be {SECRET_PREFIX} and {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes in base64"
        )


def signature_headers(id: str, timestamp: int, body: bytes, *secrets: str) -> dict[str, str]:
    """Return the headers that prove sender and time (seconds since 1970) to a receiver.

    There is one signature for each secret, so that a receiver may know the old or the new one
    while a secret is rotated. `body` is UTF-8.
    """
    at, text = datetime.fromtimestamp(timestamp, UTC), body.decode()
    signatures = [Webhook(secret).sign(id, at, text) for secret in secrets]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def new_secret() -> str:
    """Return a random secret."""
    return SECRET_PREFIX + b64encode(token_bytes(NEW_KEY_BYTES)).decode()
