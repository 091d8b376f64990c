"""What a client says, taken one message after the other; no message can break the socket."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import WSMessage, WSMsgType, web

from interfaces.feed.client import FeedClient
from interfaces.feed.hub import FeedHub
from interfaces.feed.limits import Allowance
from interfaces.feed.messages import (
    Answer,
    Authenticate,
    CloseCode,
    Closed,
    Error,
    Ping,
    Subscribe,
)
from interfaces.feed.renewing import renew
from interfaces.feed.subscription import settle
from interfaces.rest.attempts import ClientAttempts

ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


async def listen(
    hub: FeedHub,
    client: FeedClient,
    socket: web.WebSocketResponse,
    attempts: ClientAttempts,
) -> None:
    """Takes what the client says, one after the other; returns when it leaves. Raises Closed."""
    loop = asyncio.get_running_loop()
    limits = hub.limits
    allowance = Allowance(limits.subscribe_burst, limits.subscribe_rate, loop.time())
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
            raise Closed(CloseCode.MISUSED, "too many messages that make no sense")


async def _heed(
    hub: FeedHub,
    client: FeedClient,
    message: WSMessage,
    allowance: Allowance,
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
            hub.follow(client, settle(said, client.principal))
        case Ping():
            await client.say(Answer())
        case Authenticate():
            if not allowance.take(asyncio.get_running_loop().time()):
                return Error("too_often", "authenticate less often; this key was not looked at")
            return await renew(hub, client, said.token, attempts)
    return None
