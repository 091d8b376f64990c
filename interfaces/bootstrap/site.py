"""The HTTP side of a server process: one application, one socket, one file that tells where."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import msgspec
import structlog
from aiohttp import web

from infrastructure.auth.admin_key import ensure_admin_key
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.read_model.feed import PostgresFeed
from infrastructure.telemetry.metrics import PostgresVitals
from interfaces.bootstrap.parts import Parts
from interfaces.bootstrap.supervision import Work
from interfaces.feed import HUB, FeedHub
from interfaces.rest.app import build_app
from interfaces.rest.server import Runner

LOGIN_LIFETIME = 600.0  # seconds for which the printed link can be used, once
BACKLOG = 1024
SERVER_FILE = "server.json"

_log = structlog.get_logger(__name__)


class Site:
    """What answers HTTP in this process; without the role api nothing does."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.login: str | None = None
        self.works: dict[str, Work] = {}

    async def close(self) -> None:
        """Stops accepting, sends feed clients away, and lets running requests end."""


class HttpSite(Site):
    """One application on one socket."""

    def __init__(self, url: str, login: str | None, runner: web.AppRunner, feed: FeedHub) -> None:
        super().__init__()
        self.url = url
        self.login = login
        self.works["feed"] = feed.run
        self._runner = runner

    async def close(self) -> None:
        await self._runner.cleanup()


@asynccontextmanager
async def open_site(parts: Parts, answering: bool) -> AsyncIterator[Site]:
    """Listening; `server.json` in the data directory says where. Raises OSError."""
    if not answering:
        yield Site()
        return
    settings = parts.services.settings
    text = await ensure_admin_key(parts.keys, settings.admin_key_file)
    app = build_app(parts.services, vitals=PostgresVitals(parts.pool))
    app[HUB] = FeedHub(
        PostgresFeed(parts.pool), parts.listener.wakeups(READ_MODEL), parts.keys, settings
    )
    runner = Runner(
        app,
        access_log=None,
        shutdown_timeout=settings.shutdown_grace,
        read_bufsize=settings.read_buffer,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG).start()
        url = _url(runner.addresses[0])
        site = HttpSite(url, await _login(parts, url, text), runner, app[HUB])
        with _announced(settings.data_dir, url):
            yield site
    finally:
        await runner.cleanup()


async def _login(parts: Parts, url: str, text: str) -> str | None:
    """A link that signs a browser in, once; None where the admin key was revoked."""
    principal = await parts.keys.authenticate(text)
    if principal is None:
        return None
    code = await parts.keys.issue_login(principal, lifetime=LOGIN_LIFETIME)
    return f"{url}/login?code={code}"


def _url(address: tuple[str, int]) -> str:
    """An address a browser on this machine can open."""
    host = ip_address(address[0].partition("%")[0])
    if not host.is_loopback:
        _log.warning("beyond_loopback", host=str(host), advice="put TLS in front: keys travel")
    if host.is_unspecified:
        return f"http://127.0.0.1:{address[1]}"
    return f"http://{host if host.version == 4 else f'[{host}]'}:{address[1]}"


@contextmanager
def _announced(data_dir: Path, url: str) -> Iterator[None]:
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
