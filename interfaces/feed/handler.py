"""`GET /v1/feed`: one address, as a WebSocket or as Server-Sent Events."""

from __future__ import annotations

from aiohttp import hdrs, web

from interfaces.feed import sockets, streams
from interfaces.feed.serving import HUB
from interfaces.rest.problems import Problem

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
    if sockets.can_serve(request):
        return await sockets.serve(request)
    if request.method == hdrs.METH_GET and streams.MEDIA_TYPE in request.headers.get(
        hdrs.ACCEPT, ""
    ):
        return await streams.serve(request)
    raise Problem(426, "upgrade_required", _WANTED, headers=_UPGRADE)
