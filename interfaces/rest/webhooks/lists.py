"""What is shown of a webhook, and from when on lists show it: they follow the log."""

from __future__ import annotations

import asyncio

from aiohttp import web

from application.ports.webhooks import Standing
from domain.webhook.aggregate import Webhook
from interfaces.rest.params import LONGEST_WAIT
from interfaces.rest.problems import RETRY_SOON, Problem
from interfaces.rest.webhooks.answers import WebhookAnswer, webhook_answer
from interfaces.services import SERVICES, Services

SEEN_WITHIN = 2.0  # seconds at most until lists show what was changed
LOOK = 0.02  # seconds between two looks at that


async def shown(request: web.Request, webhook: Webhook) -> WebhookAnswer:
    """The webhook, and how it fares."""
    services = request.app[SERVICES]
    standings = await services.webhooks.standings([webhook.id])
    return webhook_answer(webhook, standings.get(webhook.id, Standing()), services.now())


async def seen(services: Services, position: int) -> None:
    """Returns once lists show what was recorded there, or after a little while all the same."""
    await _reached(services, position, SEEN_WITHIN)


async def reflected(services: Services, position: int) -> None:
    """Raises a 504 Problem where lists do not show this position within a few seconds."""
    if not await _reached(services, position, LONGEST_WAIT):
        detail = f"position {position} is not reflected yet"
        raise Problem(504, "position_not_reached", detail, headers=RETRY_SOON)


async def _reached(services: Services, position: int, within: float) -> bool:
    """Whether lists show this position, at the latest after so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while await services.webhooks.position() < position:
        if loop.time() > end:
            return False
        await asyncio.sleep(LOOK)
    return True
