"""Where a server is reached: sockets bound once, and the file that tells commands of them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import structlog

from infrastructure.settings import Settings

SERVER_FILE = "server.json"

_log = structlog.get_logger(__name__)


class Door(msgspec.Struct, frozen=True):
    """The sockets to accept from, bound and not yet listening; `url` opens in a local browser."""

    sockets: tuple[socket.socket, ...]
    url: str


@contextmanager
def opened_door(settings: Settings) -> Iterator[Door]:
    """Binds every address of `host`, and closes them at the end.

    Bound before anything else comes up: an address that is taken is told at once. Raises OSError.
    """
    with ExitStack() as stack:
        sockets = tuple(
            stack.enter_context(_bound(family, address))
            for family, address in _addresses(settings.host, settings.port)
        )
        yield Door(sockets, _url(sockets[0].getsockname()))


@contextmanager
def announced(data_dir: Path, url: str) -> Iterator[None]:
    """The file by which commands on this machine find the server; gone when it stops."""
    file = data_dir / SERVER_FILE
    draft = file.with_name(f".{SERVER_FILE}.{os.getpid()}")
    content = msgspec.json.encode({"url": url, "pid": os.getpid()})
    draft.write_bytes(content)
    draft.replace(file)
    try:
        yield
    finally:
        with suppress(OSError):
            if file.read_bytes() == content:
                file.unlink()


def _addresses(host: str, port: int) -> Sequence[tuple[int, Any]]:
    """Family and address, each once: a name such as localhost may stand for IPv4 and IPv6."""
    flags = socket.AI_PASSIVE
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bound(family: int, address: Any) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let a second server take the same port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
    except BaseException:
        opened.close()
        raise
    return opened


def _url(address: tuple[str, int]) -> str:
    """An address a browser on this machine can open."""
    host = ip_address(address[0].partition("%")[0])
    if not host.is_loopback:
        _log.warning("beyond_loopback", host=str(host), advice="put TLS in front: keys travel")
    if host.is_unspecified:
        return f"http://127.0.0.1:{address[1]}"
    return f"http://{host if host.version == 4 else f'[{host}]'}:{address[1]}"
