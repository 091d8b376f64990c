"""Validation of the host in a configured URL, parsed exactly as the HTTP client parses it.

Everything is decided on what `yarl` makes of the URL (IDNA, NFKC and percent-encoding applied),
and the very same `yarl.URL` is handed to the client, so that both mean one host.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
from yarl import URL

from application.addresses import is_public

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
