"""A real feed for tests: log, projector, read model, keys and sockets, in one loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp

from application.append import append_to_stream
from application.ports.auth import Scope
from domain.event import Event
from domain.ids import upload_id_for
from interfaces.bootstrap.container import Container
from interfaces.feed.connection import FeedLimits
from interfaces.feed.endpoints import HUB
from interfaces.feed.hub import FeedHub
from tests.builders import registered, started
from tests.harness import open_test_container, running, serve_http, supervise_projector
from tests.interfaces.feed.ws_client import FeedClient
from tests.support import eventually

POSITION = "SELECT notification_id FROM notification_tracking WHERE application_name = 'read_model'"


class FeedHarness:
    """A container with its feed, and ways to record events and to watch them."""

    def __init__(
        self, parts: Container, hub: FeedHub, address: str, session: aiohttp.ClientSession
    ) -> None:
        self.parts = parts
        self.log = parts.log
        self.hub = hub
        self.address = address
        self._session = session
        self._owners: dict[UUID, str] = {}  # of each stream
        self._projecting = AsyncExitStack()

    @asynccontextmanager
    async def projecting(self) -> AsyncIterator[None]:
        """The projector runs until the end, except while the test holds it."""
        await self.resume()
        try:
            yield
        finally:
            await self.hold()

    async def hold(self) -> None:
        await self._projecting.aclose()

    async def resume(self) -> None:
        await self._projecting.enter_async_context(running(supervise_projector(self.parts)))

    async def key(self, owner: str = "acme", scope: Scope = Scope.VIEWER, **more: Any) -> str:
        _, text = await self.hub.keys.create(owner=owner, scope=scope, **more)
        return text

    async def record(self, stream: UUID, *events: Event) -> int:
        """Records the events at whatever version is current; returns the position."""
        owner = self._owners.get(stream)
        return (
            await self.log.append(append_to_stream(stream, None, *events, owner=owner))
        ).position

    async def batch(self, owner: str = "acme", **more: Any) -> UUID:
        id = uuid4()
        self._owners[id] = owner
        await self.record(id, started(owner=owner, **more))
        return id

    async def upload(self, batch: UUID, path: str, owner: str = "acme", **more: Any) -> UUID:
        id = upload_id_for(batch, path, self.log.id_secret)
        self._owners[id] = owner
        await self.record(id, registered(batch=batch, path=path, owner=owner, **more))
        return id

    async def projected(self, position: int | None = None) -> int:
        """Waits until the read model reflects the position, by default the end of the log."""
        wanted = await self.log.head() if position is None else position

        async def reached() -> bool:
            [[position]] = await self.rows(POSITION)
            return bool(position >= wanted)

        await eventually(reached)
        return wanted

    async def rows(self, query: str, *values: object) -> list[Any]:
        async with self.parts.pool.connection() as connection:
            return await (await connection.execute(query.encode(), values)).fetchall()

    async def positions(self, batch: UUID) -> dict[str, dict[Any, int]]:
        """The rows of a batch in the read model: what a viewer must end up with."""
        uploads = "SELECT id, position FROM read_model.uploads WHERE batch = %s"
        attempts = (
            "SELECT upload, number, a.position FROM read_model.attempts AS a"
            " JOIN read_model.uploads AS u ON u.id = upload WHERE batch = %s"
        )
        batches = "SELECT id, position FROM read_model.batches WHERE id = %s"
        return {
            "batches": {str(id): at for id, at in await self.rows(batches, batch)},
            "uploads": {str(id): at for id, at in await self.rows(uploads, batch)},
            "attempts": {
                (str(id), number): at for id, number, at in await self.rows(attempts, batch)
            },
        }

    @asynccontextmanager
    async def viewer(self, key: str | None, **more: Any) -> AsyncIterator[FeedClient]:
        """A client of the feed; without a key it introduces itself later."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self._session.ws_connect(
            f"{self.address}/v1/feed",
            headers={**headers, **more.pop("headers", {})},
            **{"protocols": ("uptrail.v1.json",), "max_msg_size": 0, **more},
        ) as socket:
            yield FeedClient(socket)


@asynccontextmanager
async def open_feed(
    url: str, tmp_path: Path, limits: FeedLimits | None = None, *, port: int = 0, **settings: Any
) -> AsyncIterator[FeedHarness]:
    """Open a server without orchestrator and worker on this database."""
    async with (
        open_test_container(url, tmp_path, **settings) as parts,
        serve_http(parts, limits=limits, port=port) as server,
        aiohttp.ClientSession() as session,
    ):
        made = FeedHarness(parts, server.app[HUB], server.url, session)
        async with made.projecting():
            yield made
