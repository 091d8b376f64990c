"""Leader election in memory: the port `Leadership`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from application.ports.leadership import Leadership
from tests.memory.database import MemoryDatabase, Session, SessionClient, Wire

StoreT = TypeVar("StoreT")


def memory_leadership(
    database: MemoryDatabase,
    name: str,
    open_store: Callable[[SessionClient], StoreT],
    *,
    wire: Wire,
    open_session: Callable[[], Session],
    poll_interval: float = 0.5,
) -> Leadership[StoreT]:
    """Return the election of the component `name` by a lock of the in-memory server."""

    async def elect(lead: Callable[[StoreT], Awaitable[None]]) -> None:
        client = SessionClient(database, open_session(), wire)
        try:
            lock = database.lock(f"leader of {name}")
            while not await client.call(  # noqa: ASYNC110
                name, lambda: lock.try_acquire(client.session)
            ):
                await asyncio.sleep(poll_interval)
            await lead(open_store(client))
        finally:
            client.session.terminate()

    return elect
