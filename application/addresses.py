"""Which addresses the internet can reach: those inside of a network are none of our business.

Source of the rule: the special-purpose address registries of IANA.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """An IPv4 address inside of an IPv6 one counts as itself."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def literal_in(url: str) -> IPv4Address | IPv6Address | None:
    """The address that the URL spells out; None where it has a name that is to be resolved."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None
