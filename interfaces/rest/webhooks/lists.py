"""What is shown of a webhook, and from when on lists show it: they follow the log."""

from __future__ import annotations

import asyncio

from aiohttp import web

from application.ports.webhooks import WebhookHealth
from domain.webhook.aggregate import Webhook
from interfaces.common.api_types import WebhookAnswer
from interfaces.common.requests import LONGEST_WAIT, Query, least_position, not_reached
from interfaces.common.services import SERVICES, Services
from interfaces.rest.webhooks.answers import webhook_answer

SEEN_WITHIN = 2.0  # seconds at most until lists show what was changed
LOOK = 0.02  # seconds between two looks at that


async def shown(request: web.Request, webhook: Webhook) -> WebhookAnswer:
    """The webhook, and how it fares."""
    services = request.app[SERVICES]
    standings = await services.webhooks.standings([webhook.id])
    return webhook_answer(webhook, standings.get(webhook.id, WebhookHealth()), services.now())


async def seen(services: Services, position: int) -> None:
    """Returns once lists show what was recorded there, or after a little while all the same."""
    await _reached(services, position, SEEN_WITHIN)


async def reflected(request: web.Request, query: Query) -> None:
    """Return once lists show `min_position`. Raises a 504 Problem after a few seconds."""
    services = request.app[SERVICES]
    least = await least_position(request, query)
    if least and not await _reached(services, least, LONGEST_WAIT):
        raise not_reached(least, await services.webhooks.position())


async def _reached(services: Services, position: int, within: float) -> bool:
    """Whether lists show this position, at the latest after so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while await services.webhooks.position() < position:
        if loop.time() > end:
            return False
        await asyncio.sleep(LOOK)
    return True
