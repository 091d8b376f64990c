"""The feed as a WebSocket (RFC 6455), from its handshake to its close code."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import hdrs, web

from interfaces.feed.admission import introduced, presented
from interfaces.feed.client import FeedClient
from interfaces.feed.encoding import ENCODINGS, JSON, Encoding
from interfaces.feed.listening import listen
from interfaces.feed.messages import CloseCode, Closed
from interfaces.feed.serving import HUB, served
from interfaces.feed.wire import SocketWire
from interfaces.rest.access import require_known_page
from interfaces.rest.attempts import attempts_of
from interfaces.rest.problems import Problem
from interfaces.rest.running import RUNNING

LARGEST_MESSAGE = 256 * 1024  # bytes; beyond it the WebSocket itself is closed, with 1009


def can_serve(request: web.Request) -> bool:
    """Whether this is meant as the handshake of a WebSocket."""
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


async def serve(request: web.Request) -> web.StreamResponse:
    """Serves one socket. Raises Problem where the handshake is not one for us."""
    hub = request.app[HUB]
    encoding = _chosen(request)
    require_known_page(request)
    socket = web.WebSocketResponse(
        timeout=hub.limits.farewell,
        autoping=False,
        protocols=tuple(ENCODINGS),
        compress=False,  # permessage-deflate costs 1.4 to 3.5 times the processor time
        max_msg_size=LARGEST_MESSAGE,
    )
    if not socket.can_prepare(request):
        raise Problem(426, "upgrade_required", "this handshake is not that of a WebSocket")
    await socket.prepare(request)
    if request.transport is None:
        return socket
    wire = SocketWire(socket, request.transport, encoding)
    try:
        client = await _admitted(request, wire, encoding)
    except Closed as closed:
        await _close(wire, closed)
        return socket
    except ConnectionError:
        return socket
    running = request.app[RUNNING]
    running.replace(request, client)
    try:
        await _close(
            wire, await served(hub, client, listen(hub, client, socket, attempts_of(request)))
        )
    finally:
        running.discard(client)
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


async def _admitted(request: web.Request, wire: SocketWire, encoding: Encoding) -> FeedClient:
    """The client, once it is known who that is. Raises Closed, ConnectionError."""
    hub = request.app[HUB]
    known = presented(request)
    if known is None:
        if hub.roster.strangers >= hub.limits.strangers:
            raise Closed(CloseCode.FAILED, "too many have not said who they are; try again")
        hub.roster.strangers += 1
        try:
            known = await introduced(
                wire.socket, encoding, hub.keys, hub.limits.first_message, attempts_of(request)
            )
        finally:
            hub.roster.strangers -= 1
    credential, principal = known
    client = FeedClient(wire, encoding, principal, credential)
    hub.roster.admit(client)
    return client


async def _close(wire: SocketWire, closed: Closed | None) -> None:
    """Ends the WebSocket; a peer that does not take part in that is cut off."""
    if closed is None:
        return
    reason = closed.reason.encode()[:120]
    with suppress(ConnectionError):
        await wire.socket.close(code=closed.code, message=reason)
    if wire.waiting:
        wire.cut()
