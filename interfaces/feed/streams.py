"""The feed as Server-Sent Events: the frames of the WebSocket, for whoever has only HTTP.

Source: https://html.spec.whatwg.org, section 9.2. A browser's EventSource can neither send
headers nor speak, so what to follow is in the query, and a key that ends cannot be renewed here.
"""

from __future__ import annotations

from contextlib import suppress
from secrets import randbelow

from aiohttp import web

from interfaces.feed.admission import presented
from interfaces.feed.client import FeedClient
from interfaces.feed.encoding import JSON
from interfaces.feed.hub import FeedHub
from interfaces.feed.messages import CloseCode, Closed, Ended, Subscribe
from interfaces.feed.serving import HUB, served
from interfaces.feed.subscription import settle
from interfaces.feed.vigil import SILENCE
from interfaces.feed.wire import StreamWire
from interfaces.rest.access import principal_of, require_known_page
from interfaces.rest.params import Query, reflected
from interfaces.rest.problems import RETRY_SOON, Problem, bad_parameter
from interfaces.rest.running import RUNNING
from interfaces.rest.server import lost

MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
RETRY = 1000, 3000  # milliseconds: between these a client waits before it connects again

_REFUSALS = {CloseCode.RESTARTING: 503, CloseCode.TOO_MANY_SOCKETS: 429}


async def serve(request: web.Request) -> web.StreamResponse:
    """Serves one stream. Raises Problem where it cannot begin."""
    hub, query = request.app[HUB], Query(request, ("batches", "after", "min_position"))
    subscribe = _asked(request, query, request.app[HUB])
    principal_of(request)
    require_known_page(request)
    await reflected(request, query)
    known = presented(request)
    assert known is not None
    response = web.StreamResponse(headers={"X-Accel-Buffering": "no"})  # nginx passes it on at once
    response.content_type = MEDIA_TYPE
    response.charset = "utf-8"
    response.force_close()
    gone, transport = lost(request), request.transport
    if transport is None:
        return response
    patience = max(hub.limits.stuck, SILENCE * hub.settings.feed_heartbeat)
    client = FeedClient(StreamWire(response, transport, patience), JSON, known[1], known[0])
    _admit(hub, client)
    running = request.app[RUNNING]
    running.replace(request, client)
    try:
        await response.prepare(request)
        await response.write(b"retry:%d\n\n" % (RETRY[0] + randbelow(RETRY[1] - RETRY[0])))
        hub.follow(client, settle(subscribe, client.principal))
        await _end(hub, client, response, await served(hub, client, gone))
    finally:
        running.discard(client)
        hub.roster.dismiss(client)
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
    except Closed as closed:
        name = closed.code.name.lower()
        raise Problem(_REFUSALS[closed.code], name, closed.reason, headers=RETRY_SOON) from closed


async def _end(
    hub: FeedHub, client: FeedClient, response: web.StreamResponse, closed: Closed | None
) -> None:
    """Says why, once what was told before is taken; a peer that does not take it is cut off."""
    if closed is None:
        return
    try:
        if closed.code is CloseCode.TOO_SLOW:
            raise closed
        with suppress(ConnectionError):
            await client.say(Ended(closed.code, closed.reason, closed.code.again))
            await response.write_eof()
        await client.drained(0, hub.limits.farewell)
    except Closed:
        client.wire.cut()
