"""One client of the feed from its admission to its end, whatever wire it is on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import structlog
from aiohttp import web

from interfaces.feed.client import FeedClient
from interfaces.feed.hub import FeedHub
from interfaces.feed.messages import CloseCode, Closed

HUB: web.AppKey[FeedHub] = web.AppKey("feed_hub", FeedHub)

_log = structlog.get_logger(__name__)


async def served(hub: FeedHub, client: FeedClient, left: Awaitable[object]) -> Closed | None:
    """Tells the client until one side has enough; why we have, or None if the client left.

    `left` is done once the client has; it may raise Closed.
    """
    leaving = asyncio.ensure_future(left)
    telling = asyncio.create_task(hub.keep_up(client), name="feed-keep-up")
    tasks: tuple[asyncio.Future[Any], ...] = (leaving, telling, client.ended)
    try:
        await client.say(hub.welcome(client))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    except ConnectionError:
        return None
    finally:
        hub.roster.leave(client)
        for task in (leaving, telling):
            task.cancel()
        await asyncio.gather(leaving, telling, return_exceptions=True)
    return _verdict(*tasks)


def _verdict(*tasks: asyncio.Future[Any]) -> Closed | None:
    """Why we end the connection; None if the client did. What nobody foresaw is logged."""
    for task in tasks:
        if not task.done() or task.cancelled():
            continue
        error = task.exception()
        if isinstance(error, Closed):
            return error
        if error is not None and not isinstance(error, ConnectionError):
            _log.error("feed_socket_failed", exc_info=error)
            return Closed(CloseCode.FAILED, "an error on our side; connect again")
    return None
