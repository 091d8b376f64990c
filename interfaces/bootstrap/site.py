"""The HTTP side of a server process: one application on the sockets it is given."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from infrastructure.postgres.listener import READ_MODEL
from infrastructure.read_model.feed import PostgresFeed
from infrastructure.telemetry.metrics import PostgresVitals
from interfaces.bootstrap.parts import Parts
from interfaces.bootstrap.supervision import Work
from interfaces.feed import HUB, FeedHub
from interfaces.rest.app import build_app
from interfaces.rest.server import Runner

BACKLOG = 1024


class Site:
    """What answers HTTP in this process; without the role api nothing does."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}

    async def close(self) -> None:
        """Stops accepting, sends feed clients away, and lets running requests end."""


class HttpSite(Site):
    """One application."""

    def __init__(self, runner: web.AppRunner, feed: FeedHub) -> None:
        super().__init__()
        self.works["feed"] = feed.run
        self._runner = runner

    async def close(self) -> None:
        await self._runner.cleanup()


@asynccontextmanager
async def open_site(parts: Parts, sockets: Sequence[socket.socket]) -> AsyncIterator[Site]:
    """Listening on these sockets, of which there are none without the role api.

    Raises OSError where somebody else has begun to listen there since they were bound.
    """
    if not sockets:
        yield Site()
        return
    settings = parts.services.settings
    vitals = PostgresVitals(parts.pool, settings.worker_dead_after)
    app = build_app(parts.services, vitals=vitals)
    app[HUB] = FeedHub(
        PostgresFeed(parts.pool),
        parts.listener.wakeups(READ_MODEL),
        parts.keys,
        settings,
        parts.services.now,
    )
    runner = Runner(
        app,
        access_log=None,
        shutdown_timeout=settings.shutdown_grace,
        read_bufsize=settings.read_buffer,
    )
    await runner.setup()
    try:
        for opened in sockets:
            # By ourselves: where somebody else listens by now, uvloop would not say so, and
            # whoever was told of the address would send their keys to a stranger.
            opened.listen(BACKLOG)
            await web.SockSite(runner, opened, backlog=BACKLOG).start()
        yield HttpSite(runner, app[HUB])
    finally:
        await runner.cleanup()
