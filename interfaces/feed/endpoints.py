"""`GET /v1/feed`: one address, as a WebSocket or as Server-Sent Events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from secrets import randbelow
from typing import Any
from uuid import UUID

import msgspec
import structlog
from aiohttp import WSMessage, WSMsgType, hdrs, web

from application.errors import Unavailable
from application.ports.auth import Credential, Principal
from interfaces.common.access import principal_of, require_allowed_origin
from interfaces.common.failed_attempts import ClientAttempts, TooManyAttempts, attempts_of
from interfaces.common.problems import RETRY_SOON, Problem, bad_parameter
from interfaces.common.requests import Query, wait_for_min_position
from interfaces.common.running_requests import RUNNING
from interfaces.common.server import connection_closed
from interfaces.feed.authentication import authenticate, first_message_auth, request_credential
from interfaces.feed.connection import (
    FeedClient,
    SseTransport,
    TokenBucket,
    WebSocketTransport,
    resolve_subscription,
)
from interfaces.feed.hub import FeedHub
from interfaces.feed.keepalive import SILENCE
from interfaces.feed.protocol import (
    ENCODINGS,
    JSON,
    Authenticate,
    CloseCode,
    ConnectionClosed,
    Encoding,
    Error,
    Ping,
    PongFrame,
    StreamEnd,
    Subscribe,
)

# A client goes on with a new key on the connection it has: nothing is told twice or missed.

_REFUSED = "the key is unknown, revoked or expired; the credential before it still counts"
_OTHER = "this key does not see what the one before it does: connect anew with it"


async def reauthenticate(
    hub: FeedHub, client: FeedClient, token: str, attempts: ClientAttempts
) -> Error | None:
    """Takes the key for the client's from now on, or answers why not. Raises ConnectionError.

    The key must see the very same: rows are told by what they were asked with, and a cursor says
    "everything I may see, up to here".
    """
    credential = Credential(token)
    try:
        principal = await attempts.authenticate(
            "key", token, lambda: authenticate(credential, hub.keys)
        )
    except TooManyAttempts as error:
        return Error("too_many_attempts", error.detail)
    except Unavailable:
        await client.say(Error("unavailable", "the database does not answer; try again soon"))
        return None
    if principal is None:
        return Error("key_refused", _REFUSED)
    if visibility_key(principal) != visibility_key(client.principal):
        return Error("other_view", _OTHER)
    try:
        hub.roster.rename(client, principal)
    except ConnectionClosed as refusal:
        return Error("too_many", refusal.reason)
    client.credential = credential
    await client.say(hub.welcome(client))
    return None


def visibility_key(principal: Principal) -> tuple[str, str | None, UUID | None]:
    """What decides which rows somebody is told."""
    return principal.owner, principal.visible_owner, principal.batch


# What a client says, taken one message after the other; no message can break the socket.

ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


async def receive_loop(
    hub: FeedHub,
    client: FeedClient,
    socket: web.WebSocketResponse,
    attempts: ClientAttempts,
) -> None:
    """Takes what the client says, one after the other; returns when it leaves. Raises Closed."""
    loop = asyncio.get_running_loop()
    limits = hub.limits
    allowance = TokenBucket(limits.subscribe_burst, limits.subscribe_rate, loop.time())
    faults = 0
    while True:
        message = await socket.receive()
        client.heard_at = loop.time()
        if message.type in ENDS:
            return
        # Who does not read its answers is not listened to either.
        await client.drained(hub.roster.bound(client, hub.settings.feed_buffer), limits.stuck)
        if message.type is WSMsgType.PING:
            await socket.pong(message.data)
        elif message.type is not WSMsgType.PONG:
            error = await _heed(hub, client, message, allowance, attempts)
            if error is not None:
                await client.say(error)
                faults += 1
        if faults > limits.faults:
            raise ConnectionClosed(CloseCode.MISUSED, "too many messages that make no sense")


async def _heed(
    hub: FeedHub,
    client: FeedClient,
    message: WSMessage,
    allowance: TokenBucket,
    attempts: ClientAttempts,
) -> Error | None:
    """Does what the message says, or answers why not."""
    if message.type is not client.encoding.kind:
        return Error("malformed", f"{client.encoding.subprotocol} does not travel like this")
    if len(message.data) > hub.limits.message_size:
        return Error("too_large", f"a message has at most {hub.limits.message_size} bytes")
    try:
        said = client.encoding.decode(message.data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Error("malformed", str(error))
    match said:
        case Subscribe():
            if not allowance.take(asyncio.get_running_loop().time()):
                return Error("too_often", "subscribe less often; this one was not taken up")
            if len(said.batches) > hub.limits.batches:
                return Error("too_many", f"follow at most {hub.limits.batches} batches")
            hub.follow(client, resolve_subscription(said, client.principal))
        case Ping():
            await client.say(PongFrame())
        case Authenticate():
            if not allowance.take(asyncio.get_running_loop().time()):
                return Error("too_often", "authenticate less often; this key was not looked at")
            return await reauthenticate(hub, client, said.token, attempts)
    return None


# One client of the feed from its admission to its end, whatever wire it is on.

HUB: web.AppKey[FeedHub] = web.AppKey("feed_hub", FeedHub)

_log = structlog.get_logger(__name__)


async def run_connection(
    hub: FeedHub, client: FeedClient, left: Awaitable[object]
) -> ConnectionClosed | None:
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


def _verdict(*tasks: asyncio.Future[Any]) -> ConnectionClosed | None:
    """Why we end the connection; None if the client did. What nobody foresaw is logged."""
    for task in tasks:
        if not task.done() or task.cancelled():
            continue
        error = task.exception()
        if isinstance(error, ConnectionClosed):
            return error
        if error is not None and not isinstance(error, ConnectionError):
            _log.error("feed_socket_failed", exc_info=error)
            return ConnectionClosed(CloseCode.FAILED, "an error on our side; connect again")
    return None


# The feed as a WebSocket (RFC 6455), from its handshake to its close code.

LARGEST_MESSAGE = 256 * 1024  # bytes; beyond it the WebSocket itself is closed, with 1009


def can_serve(request: web.Request) -> bool:
    """Whether this is meant as the handshake of a WebSocket."""
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


async def serve_websocket(request: web.Request) -> web.StreamResponse:
    """Serves one socket. Raises Problem where the handshake is not one for us."""
    hub = request.app[HUB]
    encoding = _chosen(request)
    require_allowed_origin(request)
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
    wire = WebSocketTransport(socket, request.transport, encoding)
    try:
        client = await _admitted(request, wire, encoding)
    except ConnectionClosed as closed:
        await _close(wire, closed)
        return socket
    except ConnectionError:
        return socket
    running = request.app[RUNNING]
    running.replace(request, client)
    try:
        await _close(
            wire,
            await run_connection(
                hub, client, receive_loop(hub, client, socket, attempts_of(request))
            ),
        )
    finally:
        running.discard(client)
        hub.roster.remove(client)
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


async def _admitted(
    request: web.Request, wire: WebSocketTransport, encoding: Encoding
) -> FeedClient:
    """The client, once it is known who that is. Raises Closed, ConnectionError."""
    hub = request.app[HUB]
    known = request_credential(request)
    if known is None:
        if hub.roster.strangers >= hub.limits.strangers:
            raise ConnectionClosed(
                CloseCode.FAILED, "too many have not said who they are; try again"
            )
        hub.roster.strangers += 1
        try:
            known = await first_message_auth(
                wire.socket, encoding, hub.keys, hub.limits.first_message, attempts_of(request)
            )
        finally:
            hub.roster.strangers -= 1
    credential, principal = known
    client = FeedClient(wire, encoding, principal, credential)
    hub.roster.admit(client)
    return client


async def _close(wire: WebSocketTransport, closed: ConnectionClosed | None) -> None:
    """Ends the WebSocket; a peer that does not take part in that is cut off."""
    if closed is None:
        return
    reason = closed.reason.encode()[:120]
    with suppress(ConnectionError):
        await wire.socket.close(code=closed.code, message=reason)
    if wire.waiting:
        wire.cut()


# The feed as Server-Sent Events: the frames of the WebSocket, for whoever has only HTTP.
#
# Source: https://html.spec.whatwg.org, section 9.2. A browser's EventSource can neither send
# headers nor speak, so what to follow is in the query, and a key that ends cannot be renewed
# here.

MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
RETRY = 1000, 3000  # milliseconds: between these a client waits before it connects again

_REFUSALS = {CloseCode.RESTARTING: 503, CloseCode.TOO_MANY_SOCKETS: 429}


async def serve_event_stream(request: web.Request) -> web.StreamResponse:
    """Serves one stream. Raises Problem where it cannot begin."""
    hub, query = request.app[HUB], Query(request, ("batches", "after", "min_position"))
    subscribe = _asked(request, query, request.app[HUB])
    principal_of(request)
    require_allowed_origin(request)
    await wait_for_min_position(request, query)
    known = request_credential(request)
    assert known is not None
    response = web.StreamResponse(headers={"X-Accel-Buffering": "no"})  # nginx passes it on at once
    response.content_type = MEDIA_TYPE
    response.charset = "utf-8"
    response.force_close()
    gone, transport = connection_closed(request), request.transport
    if transport is None:
        return response
    patience = max(hub.limits.stuck, SILENCE * hub.settings.feed_heartbeat)
    client = FeedClient(SseTransport(response, transport, patience), JSON, known[1], known[0])
    _admit(hub, client)
    running = request.app[RUNNING]
    running.replace(request, client)
    try:
        await response.prepare(request)
        await response.write(b"retry:%d\n\n" % (RETRY[0] + randbelow(RETRY[1] - RETRY[0])))
        hub.follow(client, resolve_subscription(subscribe, client.principal))
        await _end(hub, client, response, await run_connection(hub, client, gone))
    finally:
        running.discard(client)
        hub.roster.remove(client)
    return response


def _asked(request: web.Request, query: Query, hub: FeedHub) -> Subscribe:
    """What the query asks to follow; a stream that is taken up again says where it was cut."""
    after = request.headers.get(LAST_EVENT_ID) or query.text("after")
    named = request.query.get("batches", "*")
    if named == "*":
        return Subscribe("*", after)
    batches = [name.strip() for name in named.split(",")]
    if len(batches) > hub.limits.batches:
        raise bad_parameter("batches", f"names {len(batches)}; follow at most {hub.limits.batches}")
    return Subscribe(batches, after)


def _admit(hub: FeedHub, client: FeedClient) -> None:
    """Counts the client in. Raises Problem for one too many, or too late."""
    try:
        hub.roster.admit(client)
    except ConnectionClosed as closed:
        name = closed.code.name.lower()
        raise Problem(_REFUSALS[closed.code], name, closed.reason, headers=RETRY_SOON) from closed


async def _end(
    hub: FeedHub, client: FeedClient, response: web.StreamResponse, closed: ConnectionClosed | None
) -> None:
    """Says why, once what was told before is taken; a peer that does not take it is cut off."""
    if closed is None:
        return
    try:
        if closed.code is CloseCode.TOO_SLOW:
            raise closed
        with suppress(ConnectionError):
            await client.say(StreamEnd(closed.code, closed.reason, closed.code.again))
            await response.write_eof()
        await client.drained(0, hub.limits.farewell)
    except ConnectionClosed:
        client.wire.cut()


_UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}
_WANTED = "this is a WebSocket; for Server-Sent Events ask with Accept: text/event-stream"


def add_routes(app: web.Application) -> None:
    """The feed's route. The application holds the hub under HUB, and runs `hub.run()`."""
    app.router.add_get("/v1/feed", feed)
    app.on_shutdown.append(_send_away)


async def _send_away(app: web.Application) -> None:
    if HUB in app:
        await app[HUB].close()


async def feed(request: web.Request) -> web.StreamResponse:
    """Serves one client. Raises Problem where it asks for neither."""
    if can_serve(request):
        return await serve_websocket(request)
    if request.method == hdrs.METH_GET and MEDIA_TYPE in request.headers.get(hdrs.ACCEPT, ""):
        return await serve_event_stream(request)
    raise Problem(426, "upgrade_required", _WANTED, headers=_UPGRADE)
