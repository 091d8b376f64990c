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

from infrastructure import files
from infrastructure.auth.keys import PostgresKeys, ensure_admin_key
from infrastructure.settings import Settings
from interfaces.bootstrap.container import Role
from interfaces.common.forwarded import public_base_url

SERVER_FILE = "server.json"

_log = structlog.get_logger(__name__)


# Linux spreads connections evenly over the sockets that listen on one port. If processes accept
# from a shared socket instead, the one that runs at the moment takes most of them; other systems
# with SO_REUSEPORT assign all connections to one socket.
SPREADS_CONNECTIONS = sys.platform == "linux"


class ListenSockets(msgspec.Struct, frozen=True):
    """Bound sockets that do not listen yet; `url` opens in a browser on this machine."""

    sockets: tuple[socket.socket, ...]
    url: str

    def for_child(self) -> tuple[socket.socket, ...]:
        """Return sockets on the same addresses for one child process.

        They are to be closed here once the child has inherited them: when it dies, new connections
        go to the other children.
        """
        if not SPREADS_CONNECTIONS:
            return tuple(opened.dup() for opened in self.sockets)
        return tuple(_shared(opened.family, opened.getsockname()) for opened in self.sockets)


@contextmanager
def bind_sockets(settings: Settings) -> Iterator[ListenSockets]:
    """Bind every address of `host`, and close the sockets at the end.

    Bound before anything else starts: an address in use is reported at once. Raises OSError.
    """
    bound = _reserved if settings.processes > 1 and SPREADS_CONNECTIONS else _bound
    with ExitStack() as stack:
        sockets = tuple(
            stack.enter_context(bound(family, address))
            for family, address in _addresses(settings.host, settings.port)
        )
        yield ListenSockets(sockets, _url(sockets[0].getsockname()))


@contextmanager
def server_file(data_dir: Path, url: str) -> Iterator[None]:
    """Write the file by which commands on this machine find the server; delete it at the end."""
    file = data_dir / SERVER_FILE
    content = msgspec.json.encode({"url": url, "pid": os.getpid()})
    files.write_file_atomically(file, content, mode=0o644)
    try:
        yield
    finally:
        with suppress(OSError):
            if file.read_bytes() == content:
                files.unlink(file)


def _addresses(host: str, port: int) -> Sequence[tuple[int, Any]]:
    """Return family and address, each once: localhost may stand for IPv4 and IPv6."""
    flags = socket.AI_PASSIVE
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _reserved(family: int, address: Any) -> socket.socket:
    """Bind a socket with SO_REUSEPORT for our processes, if the address is free.

    Only a socket without that option detects another listener.
    """
    with _bound(family, address) as probe:
        free = probe.getsockname()
    return _shared(family, free)


def _shared(family: int, address: Any) -> socket.socket:
    return _bound(family, address, socket.SO_REUSEPORT)


def _bound(family: int, address: Any, *more: int) -> socket.socket:
    """Return a socket bound to this address; `more` are further socket options to set."""
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
    """Return a URL that a browser on this machine can open."""
    host = ip_address(address[0].partition("%")[0])
    if not host.is_loopback:
        _log.warning("beyond_loopback", host=str(host), advice="put TLS in front: keys travel")
    if host.is_unspecified:
        return f"http://127.0.0.1:{address[1]}"
    return f"http://{host if host.version == 4 else f'[{host}]'}:{address[1]}"


# Exit without waiting, after a second signal.

INTERRUPTED_EXIT_CODE = 130


def force_exit() -> NoReturn:
    """End the process at once: everything that was acknowledged is durable already."""
    print("stopped at once; nothing that was acknowledged is lost", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED_EXIT_CODE)


# Message of a started server: its address, and a link to sign in.

LOGIN_LIFETIME = 600.0  # seconds for which the printed link can be used, once


class Ready(msgspec.Struct, frozen=True):
    """A started server: its URL, None without the role api, and a link to sign in."""

    url: str | None
    login: str | None
    roles: tuple[Role, ...]


async def login_link(
    keys: PostgresKeys, settings: Settings, listeners: ListenSockets
) -> str | None:
    """Return a link that signs a browser in once; None if the admin key was revoked."""
    text = await ensure_admin_key(keys, settings.admin_key_file)
    principal = await keys.authenticate(text)
    if principal is None:
        return None
    code = await keys.create_login_code(principal, lifetime=LOGIN_LIFETIME)
    return f"{public_base_url(settings, local_url=listeners.url)}/login?code={code}"


# State notifications to the service manager, if it asked for them (sd_notify(3)).

NOTIFY_SOCKET = "NOTIFY_SOCKET"


def sd_notify(state: str) -> None:
    """Send `READY=1` or `STOPPING=1` to systemd; do nothing if it does not listen.

    A name that begins with `@` is in the abstract namespace of Linux.
    """
    address = os.environ.get(NOTIFY_SOCKET)
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.connect("\0" + address[1:] if address.startswith("@") else address)
            line.sendall(state.encode())
    except OSError as error:
        _log.warning("service_manager_not_notified", state=state, error=str(error))


# Stop signals: the first stops gracefully, the second exits at once.

REPEAT_INTERVAL = 0.3  # seconds within which two signals count as one


@contextmanager
def stop_on_signals(
    stopping: asyncio.Event, at_once: Callable[[], object] = force_exit
) -> Iterator[None]:
    """Set `stopping` on SIGTERM or SIGINT; call `at_once` on the second signal.

    A signal that follows within REPEAT_INTERVAL is the same one, sent to the process and to its
    group.
    """
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield
        return
    loop = asyncio.get_running_loop()
    first = 0.0

    def request_stop() -> None:
        nonlocal first
        if not first:
            first = loop.time()
            stopping.set()
        elif loop.time() - first > REPEAT_INTERVAL:
            at_once()

    kinds = (signal.SIGTERM, signal.SIGINT)
    try:
        for kind in kinds:
            loop.add_signal_handler(kind, request_stop)
        yield
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)
