"""`GET /v1/feed`: WebSocket (RFC 6455) or Server-Sent Events, at the same path.

Source for Server-Sent Events: https://html.spec.whatwg.org, section 9.2. A browser's EventSource
can send neither headers nor messages, so the subscription is in the query, and an expiring key
cannot be renewed.
"""

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
from interfaces.feed import protocol
from interfaces.feed.authentication import (
    CLOSE_TYPES,
    authenticate,
    first_message_auth,
    request_credential,
)
from interfaces.feed.connection import (
    FeedClient,
    SseTransport,
    TokenBucket,
    WebSocketTransport,
    resolve_subscription,
)
from interfaces.feed.hub import FeedHub
from interfaces.feed.keepalive import MAX_MISSED_HEARTBEATS

_REFUSED = "the key is unknown, revoked or expired; the credential before it still counts"
_DIFFERENT_VIEW = "this key does not see what the one before it does: connect anew with it"


async def reauthenticate(
    hub: FeedHub, client: FeedClient, token: str, attempts: ClientAttempts
) -> protocol.Error | None:
    """Replace the client's key, so that the feed continues; return an error if it is not accepted.

    The new key must see the same rows: a cursor means "all visible rows up to this position".
    Raises ConnectionError.
    """
    credential = Credential(token)
    try:
        principal = await attempts.authenticate(
            "key", token, lambda: authenticate(credential, hub.keys)
        )
    except TooManyAttempts as error:
        return protocol.Error("too_many_attempts", error.detail)
    except Unavailable:
        await client.send_control(
            protocol.Error("unavailable", "the database does not answer; try again soon")
        )
        return None
    if principal is None:
        return protocol.Error("key_refused", _REFUSED)
    if visibility_key(principal) != visibility_key(client.principal):
        return protocol.Error("other_view", _DIFFERENT_VIEW)
    try:
        hub.registry.rename(client, principal)
    except protocol.ConnectionClosed as refusal:
        return protocol.Error("too_many", refusal.reason)
    client.credential = credential
    await client.send_control(hub.welcome_frame(client))
    return None


def visibility_key(principal: Principal) -> tuple[str, str | None, UUID | None]:
    """Return the properties of a principal that decide which rows it may see."""
    return principal.owner, principal.visible_owner, principal.batch


async def receive_loop(
    hub: FeedHub,
    client: FeedClient,
    socket: web.WebSocketResponse,
    attempts: ClientAttempts,
) -> None:
    """Handle the client's messages in order, until it leaves. Raises ConnectionClosed."""
    loop = asyncio.get_running_loop()
    limits = hub.limits
    bucket = TokenBucket(limits.subscribe_burst, limits.subscribe_rate, loop.time())
    errors = 0
    while True:
        message = await socket.receive()
        client.last_received_at = loop.time()
        if message.type in CLOSE_TYPES:
            return
        # Backpressure: the next message is handled once the client has read its responses.
        await client.wait_drained(
            hub.registry.buffer_limit(client, hub.settings.feed_buffer), limits.drain_timeout
        )
        if message.type is WSMsgType.PING:
            await socket.pong(message.data)
        elif message.type is not WSMsgType.PONG:
            error = await _handle_message(hub, client, message, bucket, attempts)
            if error is not None:
                await client.send_control(error)
                errors += 1
        if errors > limits.max_errors:
            raise protocol.ConnectionClosed(
                protocol.CloseCode.MISUSED, "too many messages that make no sense"
            )


async def _handle_message(
    hub: FeedHub,
    client: FeedClient,
    message: WSMessage,
    bucket: TokenBucket,
    attempts: ClientAttempts,
) -> protocol.Error | None:
    """Handle a message; return an error if it is rejected."""
    if message.type is not client.encoding.kind:
        return protocol.Error(
            "malformed", f"{client.encoding.subprotocol} does not travel like this"
        )
    if len(message.data) > hub.limits.max_message_size:
        return protocol.Error(
            "too_large", f"a message has at most {hub.limits.max_message_size} bytes"
        )
    try:
        decoded = client.encoding.decode(message.data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return protocol.Error("malformed", str(error))
    match decoded:
        case protocol.Subscribe():
            if not bucket.take(asyncio.get_running_loop().time()):
                return protocol.Error(
                    "too_often", "subscribe less often; this one was not taken up"
                )
            if len(decoded.batches) > hub.limits.max_batches:
                return protocol.Error(
                    "too_many", f"follow at most {hub.limits.max_batches} batches"
                )
            hub.follow(client, resolve_subscription(decoded, client.principal))
        case protocol.Ping():
            await client.send_control(protocol.PongFrame())
        case protocol.Authenticate():
            if not bucket.take(asyncio.get_running_loop().time()):
                return protocol.Error(
                    "too_often", "authenticate less often; this key was not looked at"
                )
            return await reauthenticate(hub, client, decoded.token, attempts)
    return None


HUB: web.AppKey[FeedHub] = web.AppKey("feed_hub", FeedHub)

_log = structlog.get_logger(__name__)


async def run_connection(
    hub: FeedHub, client: FeedClient, left: Awaitable[object]
) -> protocol.ConnectionClosed | None:
    """Send changes until one side closes; return the server's reason, None if the client left.

    `left` is done once the client has left; it may raise ConnectionClosed.
    """
    leaving = asyncio.ensure_future(left)
    sending = asyncio.create_task(hub.catch_up(client), name="feed-catch-up")
    tasks: tuple[asyncio.Future[Any], ...] = (leaving, sending, client.closed)
    try:
        await client.send_control(hub.welcome_frame(client))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    except ConnectionError:
        return None
    finally:
        hub.registry.leave(client)
        for task in (leaving, sending):
            task.cancel()
        await asyncio.gather(leaving, sending, return_exceptions=True)
    return _close_reason(*tasks)


def _close_reason(*tasks: asyncio.Future[Any]) -> protocol.ConnectionClosed | None:
    """Return why the server closes, None if the client left. Unexpected errors are logged."""
    for task in tasks:
        if not task.done() or task.cancelled():
            continue
        error = task.exception()
        if isinstance(error, protocol.ConnectionClosed):
            return error
        if error is not None and not isinstance(error, ConnectionError):
            _log.error("feed_connection_failed", exc_info=error)
            return protocol.ConnectionClosed(
                protocol.CloseCode.FAILED, "an error on our side; connect again"
            )
    return None


MAX_WEBSOCKET_MESSAGE = 256 * 1024  # bytes; a larger one closes the WebSocket with code 1009


def is_websocket_handshake(request: web.Request) -> bool:
    """Return whether the request is the handshake of a WebSocket."""
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


async def serve_websocket(request: web.Request) -> web.StreamResponse:
    """Serve one WebSocket. Raises Problem for an unacceptable handshake."""
    hub = request.app[HUB]
    encoding = _negotiate_encoding(request)
    require_allowed_origin(request)
    socket = web.WebSocketResponse(
        timeout=hub.limits.close_timeout,
        autoping=False,
        protocols=tuple(protocol.ENCODINGS),
        compress=False,  # permessage-deflate costs 1.4 to 3.5 times the processor time
        max_msg_size=MAX_WEBSOCKET_MESSAGE,
    )
    if not socket.can_prepare(request):
        raise Problem(426, "upgrade_required", "this handshake is not that of a WebSocket")
    await socket.prepare(request)
    if request.transport is None:
        return socket
    transport = WebSocketTransport(socket, request.transport, encoding)
    try:
        client = await _admit_websocket(request, transport, encoding)
    except protocol.ConnectionClosed as closed:
        await _close(transport, closed)
        return socket
    except ConnectionError:
        return socket
    running = request.app[RUNNING]
    running.replace(request, client)
    try:
        await _close(
            transport,
            await run_connection(
                hub, client, receive_loop(hub, client, socket, attempts_of(request))
            ),
        )
    finally:
        running.discard(client)
        hub.registry.remove(client)
    return socket


def _negotiate_encoding(request: web.Request) -> protocol.Encoding:
    """Return the encoding of the client's first supported subprotocol; JSON if it names none."""
    offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
    if offered is None:
        return protocol.JSON
    for name in offered.split(","):
        if name.strip() in protocol.ENCODINGS:
            return protocol.ENCODINGS[name.strip()]
    raise Problem(400, "unknown_subprotocol", f"this feed speaks {', '.join(protocol.ENCODINGS)}")


async def _admit_websocket(
    request: web.Request, transport: WebSocketTransport, encoding: protocol.Encoding
) -> FeedClient:
    """Authenticate and register the client. Raises ConnectionClosed, ConnectionError."""
    hub = request.app[HUB]
    known = request_credential(request)
    if known is None:
        if hub.registry.unauthenticated >= hub.limits.max_unauthenticated:
            raise protocol.ConnectionClosed(
                protocol.CloseCode.FAILED,
                "too many connections are not authenticated yet; try again",
            )
        hub.registry.unauthenticated += 1
        try:
            known = await first_message_auth(
                transport.socket,
                encoding,
                hub.keys,
                hub.limits.authentication_timeout,
                attempts_of(request),
            )
        finally:
            hub.registry.unauthenticated -= 1
    credential, principal = known
    client = FeedClient(transport, encoding, principal, credential)
    hub.registry.add(client)
    return client


async def _close(transport: WebSocketTransport, closed: protocol.ConnectionClosed | None) -> None:
    """Close the WebSocket; abort the connection if the peer does not respond."""
    if closed is None:
        return
    reason = closed.reason.encode()[:120]
    with suppress(ConnectionError):
        await transport.socket.close(code=closed.code, message=reason)
    if transport.buffered_bytes:
        transport.abort()


MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
RECONNECT_DELAY = 1000, 3000  # milliseconds, the range of a random delay

_STATUS_OF_CODE = {protocol.CloseCode.RESTARTING: 503, protocol.CloseCode.TOO_MANY_SOCKETS: 429}


async def serve_event_stream(request: web.Request) -> web.StreamResponse:
    """Serve one event stream. Raises Problem if it cannot begin."""
    hub, query = request.app[HUB], Query(request, ("batches", "after", "min_position"))
    subscribe = _parse_subscription(request, query, request.app[HUB])
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
    peer_timeout = max(
        hub.limits.drain_timeout, MAX_MISSED_HEARTBEATS * hub.settings.feed_heartbeat
    )
    client = FeedClient(
        SseTransport(response, transport, peer_timeout), protocol.JSON, known[1], known[0]
    )
    _admit_stream(hub, client)
    running = request.app[RUNNING]
    running.replace(request, client)
    try:
        await response.prepare(request)
        await response.write(b"retry:%d\n\n" % _random_reconnect_delay())
        hub.follow(client, resolve_subscription(subscribe, client.principal))
        await _end_stream(hub, client, response, await run_connection(hub, client, gone))
    finally:
        running.discard(client)
        hub.registry.remove(client)
    return response


def _random_reconnect_delay() -> int:
    """Return a random delay in milliseconds, so that clients do not reconnect all at once."""
    shortest, longest = RECONNECT_DELAY
    return shortest + randbelow(longest - shortest)


def _parse_subscription(request: web.Request, query: Query, hub: FeedHub) -> protocol.Subscribe:
    """Parse the query; a reconnecting EventSource sends its cursor in Last-Event-ID."""
    after = request.headers.get(LAST_EVENT_ID) or query.text("after")
    text = request.query.get("batches", "*")
    if text == "*":
        return protocol.Subscribe("*", after)
    batches = [name.strip() for name in text.split(",")]
    if len(batches) > hub.limits.max_batches:
        raise bad_parameter(
            "batches", f"names {len(batches)}; follow at most {hub.limits.max_batches}"
        )
    return protocol.Subscribe(batches, after)


def _admit_stream(hub: FeedHub, client: FeedClient) -> None:
    """Register the client. Raises Problem beyond the limit, or at shutdown."""
    try:
        hub.registry.add(client)
    except protocol.ConnectionClosed as closed:
        name = closed.code.name.lower()
        raise Problem(
            _STATUS_OF_CODE[closed.code], name, closed.reason, headers=RETRY_SOON
        ) from closed


async def _end_stream(
    hub: FeedHub,
    client: FeedClient,
    response: web.StreamResponse,
    closed: protocol.ConnectionClosed | None,
) -> None:
    """Send the reason and wait until the client has read it; abort a peer that does not read."""
    if closed is None:
        return
    try:
        if closed.code is protocol.CloseCode.TOO_SLOW:
            raise closed
        with suppress(ConnectionError):
            await client.send_control(
                protocol.StreamEnd(closed.code, closed.reason, closed.code.should_reconnect)
            )
            await response.write_eof()
        await client.wait_drained(0, hub.limits.close_timeout)
    except protocol.ConnectionClosed:
        client.transport.abort()


_UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade"}
_UPGRADE_REQUIRED = "this is a WebSocket; for Server-Sent Events ask with Accept: text/event-stream"


def add_routes(app: web.Application) -> None:
    """Add the feed's route. The application holds the hub under HUB, and runs `hub.run()`."""
    app.router.add_get("/v1/feed", feed)
    app.on_shutdown.append(_close_connections)


async def _close_connections(app: web.Application) -> None:
    if HUB in app:
        await app[HUB].close()


async def feed(request: web.Request) -> web.StreamResponse:
    """Serve one client by either protocol. Raises Problem for another request."""
    if is_websocket_handshake(request):
        return await serve_websocket(request)
    if request.method == hdrs.METH_GET and MEDIA_TYPE in request.headers.get(hdrs.ACCEPT, ""):
        return await serve_event_stream(request)
    raise Problem(426, "upgrade_required", _UPGRADE_REQUIRED, headers=_UPGRADE)
