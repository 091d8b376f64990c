"""`GET /v1/feed`: a WebSocket from its handshake to its end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import structlog
from aiohttp import hdrs, web

from interfaces.feed.admission import introduced, presented
from interfaces.feed.client import FeedClient, Wire
from interfaces.feed.encoding import ENCODINGS, JSON, Encoding
from interfaces.feed.hub import FeedHub
from interfaces.feed.listening import listen
from interfaces.feed.messages import (
    CloseCode,
    Closed,
    Welcome,
)
from interfaces.rest.problems import Problem

HUB: web.AppKey[FeedHub] = web.AppKey("feed_hub", FeedHub)

LARGEST_FRAME = 256 * 1024  # bytes; beyond it the WebSocket itself is closed, with 1009
_UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}

_log = structlog.get_logger(__name__)


def add_routes(app: web.Application) -> None:
    """The feed's route. The application holds the hub under HUB, and runs `hub.run()`."""
    app.router.add_get("/v1/feed", feed)
    app.on_shutdown.append(_send_away)


async def _send_away(app: web.Application) -> None:
    if HUB in app:
        await app[HUB].close()


async def feed(request: web.Request) -> web.StreamResponse:
    """Serves one socket. Raises Problem where the handshake is not one for us."""
    hub = request.app[HUB]
    encoding = _chosen(request)
    socket = web.WebSocketResponse(
        timeout=hub.limits.farewell,
        autoping=False,
        protocols=tuple(ENCODINGS),
        compress=False,
        max_msg_size=LARGEST_FRAME,
    )
    if not socket.can_prepare(request):
        raise Problem(426, "upgrade_required", "this is a WebSocket", headers=_UPGRADE)
    await socket.prepare(request)
    if request.transport is None:
        return socket
    wire = Wire(socket, request.transport)
    try:
        client = await _admitted(request, wire, encoding)
    except Closed as closed:
        await _close(wire, closed)
        return socket
    except ConnectionError:
        return socket
    try:
        await _close(wire, await _served(hub, client))
    finally:
        hub.roster.dismiss(client)
    return socket


def _chosen(request: web.Request) -> Encoding:
    """The first subprotocol of the client's that we speak; JSON if it names none."""
    offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
    if offered is None:
        return JSON
    for name in offered.split(","):
        if name.strip() in ENCODINGS:
            return ENCODINGS[name.strip()]
    raise Problem(400, "unknown_subprotocol", f"this feed speaks {', '.join(ENCODINGS)}")


async def _admitted(request: web.Request, wire: Wire, encoding: Encoding) -> FeedClient:
    """The client, once it is known who that is. Raises Closed, ConnectionError."""
    hub = request.app[HUB]
    known = presented(request)
    if known is None:
        if hub.roster.strangers >= hub.limits.strangers:
            raise Closed(CloseCode.FAILED, "too many have not said who they are; try again")
        hub.roster.strangers += 1
        try:
            known = await introduced(wire.socket, encoding, hub.keys, hub.limits.first_message)
        finally:
            hub.roster.strangers -= 1
    credential, principal = known
    client = FeedClient(wire, encoding, principal, credential)
    hub.roster.admit(client)
    return client


async def _served(hub: FeedHub, client: FeedClient) -> Closed | None:
    """Listens and tells until one side has enough; why we have, or None if the client left."""
    welcome = Welcome(client.principal.name, client.principal.owner, hub.settings.feed_heartbeat)
    listening = asyncio.create_task(listen(hub, client), name="feed-listen")
    telling = asyncio.create_task(hub.keep_up(client), name="feed-keep-up")
    tasks: tuple[asyncio.Future[Any], ...] = (listening, telling, client.ended)
    try:
        await client.say(welcome)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    except ConnectionError:
        return None
    finally:
        for task in (listening, telling):
            task.cancel()
        await asyncio.gather(listening, telling, return_exceptions=True)
    return _verdict(*tasks)


def _verdict(*tasks: asyncio.Future[Any]) -> Closed | None:
    """Why we end the socket; None if the client did. What nobody foresaw is logged."""
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


async def _close(wire: Wire, closed: Closed | None) -> None:
    """Ends the WebSocket; a peer that does not take part in that is cut off."""
    if closed is None:
        return
    reason = closed.reason.encode()[:120]
    with suppress(ConnectionError):
        await wire.socket.close(code=closed.code, message=reason)
    if wire.waiting:
        wire.cut()
