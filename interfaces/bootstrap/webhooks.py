"""What the role orchestrator runs for webhooks: one follows the log, others deliver."""

from __future__ import annotations

import asyncio
from random import random

from application.webhooks.delivering import Deliverer
from application.webhooks.telling import Teller
from infrastructure.outbound.requests import open_outbound
from infrastructure.webhooks.delivering import Deliveries
from infrastructure.webhooks.following import Follower
from infrastructure.webhooks.outbox import PostgresOutbox
from infrastructure.webhooks.sender import HttpSender
from interfaces.bootstrap.parts import Parts
from interfaces.bootstrap.supervision import Work


def works_of(parts: Parts, reach_us: str) -> dict[str, Work]:
    """`reach_us` is the address of the API that messages link to, empty where none is known."""
    bell = asyncio.Event()
    return {
        "webhooks": lambda: _follow(parts, bell),
        "deliveries": lambda: _deliver(parts, bell, reach_us),
    }


async def _follow(parts: Parts, bell: asyncio.Event) -> None:
    services = parts.services
    follower = Follower(
        parts.database.url,
        parts.listener.wakeups(),
        bell,
        most=services.settings.webhook_max_pending,
        now=services.now,
        codec=parts.codec,
    )
    await follower.run()


async def _deliver(parts: Parts, bell: asyncio.Event, reach_us: str) -> None:
    services = parts.services
    settings = services.settings
    outbox = PostgresOutbox(parts.pool, settings.webhook_timeout)
    async with open_outbound(settings.allow_private_addresses) as outbound:
        deliverer = Deliverer(
            outbox,
            HttpSender(outbound, settings.webhook_timeout),
            Teller(parts.log, services.queries, reach_us),
            parts.log,
            disable_after=settings.webhook_disable_after,
            now=services.now,
            random=random,
        )
        deliveries = Deliveries(
            outbox,
            deliverer,
            parts.pool,
            bell,
            retention=settings.webhook_retention,
            now=services.now,
        )
        await deliveries.run()
