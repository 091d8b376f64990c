"""Listening sockets, and the file by which commands find a running server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import structlog

from infrastructure.auth.keys import PostgresKeys, ensure_admin_key
from infrastructure.platform import write_file_atomically
from infrastructure.settings import Settings
from interfaces.bootstrap.container import Role
from interfaces.common.forwarded import public_base_url

SERVER_FILE = "server.json"

_log = structlog.get_logger(__name__)


# Linux spreads connections evenly over the sockets that listen on one port. Where processes
# accept from one socket, the one that happens to run takes most of them; systems that know
# SO_REUSEPORT otherwise give all to one.
SPREADS = sys.platform == "linux"


class ListenSockets(msgspec.Struct, frozen=True):
    """The sockets to accept from, bound and not yet listening; `url` opens in a local browser."""

    sockets: tuple[socket.socket, ...]
    url: str

    def for_child(self) -> tuple[socket.socket, ...]:
        """Sockets on the same addresses for one process of several, to be closed here after it
        has inherited them: when it dies its share of connections goes to the others."""
        if not SPREADS:
            return tuple(opened.dup() for opened in self.sockets)
        return tuple(_shared(opened.family, opened.getsockname()) for opened in self.sockets)


@contextmanager
def bind_sockets(settings: Settings) -> Iterator[ListenSockets]:
    """Bind every address of `host`, and close the sockets at the end.

    Bound before anything else starts: an address in use is reported at once. Raises OSError.
    """
    bound = _reserved if settings.processes > 1 and SPREADS else _bound
    with ExitStack() as stack:
        sockets = tuple(
            stack.enter_context(bound(family, address))
            for family, address in _addresses(settings.host, settings.port)
        )
        yield ListenSockets(sockets, _url(sockets[0].getsockname()))


@contextmanager
def server_file(data_dir: Path, url: str) -> Iterator[None]:
    """The file by which commands on this machine find the server; gone when it stops."""
    file = data_dir / SERVER_FILE
    content = msgspec.json.encode({"url": url, "pid": os.getpid()})
    write_file_atomically(file, content, mode=0o644)
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


def _reserved(family: int, address: Any) -> socket.socket:
    """Bind a socket with SO_REUSEPORT for our processes, if the address is free.

    Only a socket without that option detects another listener."""
    with _bound(family, address) as alone:
        free = alone.getsockname()
    return _shared(family, free)


def _shared(family: int, address: Any) -> socket.socket:
    return _bound(family, address, socket.SO_REUSEPORT)


def _bound(family: int, address: Any, *more: int) -> socket.socket:
    """A socket on this address; `more` are options of sockets to set first."""
    opened = socket.socket(family, socket.SOCK_STREAM)
    # On Windows it would let a second server take the same port.
    options = more if sys.platform == "win32" else (socket.SO_REUSEADDR, *more)
    try:
        for option in options:
            opened.setsockopt(socket.SOL_SOCKET, option, 1)
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


# Exit without waiting, after a second signal.

INTERRUPTED_EXIT_CODE = 130


def force_exit() -> NoReturn:
    """Ends the process as a kill would: whatever was acknowledged is durable already."""
    print("left at once; nothing acknowledged is lost", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED_EXIT_CODE)


# Message of a started server: its address, and a link to sign in.

LOGIN_LIFETIME = 600.0  # seconds for which the printed link can be used, once


class Ready(msgspec.Struct, frozen=True):
    """A server that answers: where, and how to sign in. `url` is None without the role api."""

    url: str | None
    login: str | None
    roles: tuple[Role, ...]


async def login_link(keys: PostgresKeys, settings: Settings, door: ListenSockets) -> str | None:
    """A link that signs a browser in, once; None where the admin key was revoked."""
    text = await ensure_admin_key(keys, settings.admin_key_file)
    principal = await keys.authenticate(text)
    if principal is None:
        return None
    code = await keys.create_login_code(principal, lifetime=LOGIN_LIFETIME)
    return f"{public_base_url(settings, local_url=door.url)}/login?code={code}"


# State notifications to the service manager, if it asked for them (sd_notify(3)).

VARIABLE = "NOTIFY_SOCKET"


def sd_notify(state: str) -> None:
    """Sends `READY=1` or `STOPPING=1` to systemd; does nothing where it does not listen.

    A name that opens with `@` is one of Linux' abstract namespace.
    """
    address = os.environ.get(VARIABLE)
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.connect("\0" + address[1:] if address.startswith("@") else address)
            line.sendall(state.encode())
    except OSError as error:
        _log.warning("manager_not_told", state=state, error=str(error))


# Stop signals: the first stops gracefully, the second exits at once.

SAME = 0.3  # seconds within which two signals are one


@contextmanager
def stop_on_signals(
    stopping: asyncio.Event, at_once: Callable[[], object] = force_exit
) -> Iterator[None]:
    """SIGTERM and SIGINT set `stopping`; the second one calls `at_once`.

    What follows at once is the same signal again, sent to the process and to its group.
    """
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield
        return
    loop = asyncio.get_running_loop()
    first = 0.0

    def asked() -> None:
        nonlocal first
        if not first:
            first = loop.time()
            stopping.set()
        elif loop.time() - first > SAME:
            at_once()

    kinds = (signal.SIGTERM, signal.SIGINT)
    try:
        for kind in kinds:
            loop.add_signal_handler(kind, asked)
        yield
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)
