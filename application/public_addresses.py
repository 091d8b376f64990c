"""Classification of IP addresses as public or not.

Source of the rules: IANA's IPv4 and IPv6 special-purpose address registries (RFC 6890) and the
IPv6 unicast allocation 2000::/3 (RFC 4291). The tables are spelled out here because
`ipaddress.is_global` differs between patch releases of Python.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit
from uuid import UUID

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared address space of carriers (CGNAT)
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform endpoint, only reachable from inside
        "169.254.0.0/16",  # link local, among it the metadata services of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relay anycast, withdrawn
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, among it the broadcast address
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")  # everything else is reserved, local or multicast
_NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments, among them Teredo and ORCHID
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291 section 2.5.5.2
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address
_SIX_TO_FOUR = IPv6Network("2002::/16")  # RFC 3056: bytes 3 to 6 are an IPv4 address
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: bytes 9 to 12, followed by an IPv4 address


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether the public internet can reach an address.

    An IPv6 address that carries an IPv4 address is public only if that one is. A zone id does
    not change the answer.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    number = int(address)
    plain = IPv6Address(number)  # without a zone id
    if plain in _MAPPED or plain in _NAT64:
        return is_public(IPv4Address(number & 0xFFFFFFFF))
    if plain in _SIX_TO_FOUR and not is_public(IPv4Address(number >> 80 & 0xFFFFFFFF)):
        return False
    if number >> 32 & 0xFFFFFFFF in _ISATAP and not is_public(IPv4Address(number & 0xFFFFFFFF)):
        return False
    return plain in _PUBLIC_V6 and not any(plain in network for network in _NOT_PUBLIC_V6)


# Masking of webhook addresses, which may contain a token, for readers without access to them.


def masked(notify: str) -> str:
    """Return a batch's `notify` without secret parts: an id unchanged, only the host of a URL."""
    try:
        return str(UUID(notify))
    except ValueError:
        pass
    try:
        parts = urlsplit(notify)
        host = parts.hostname or ""
    except ValueError:
        return "..."
    return f"{parts.scheme}://{host}/..." if host else "..."
