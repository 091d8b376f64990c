"""`Uptrail-Position`: where a reader asks from (`min_position`) to see what a request led to."""

from __future__ import annotations

from aiohttp import web

from interfaces.rest.answers import POSITION
from interfaces.services import SERVICES


async def placed(request: web.Request, position: int) -> dict[str, str]:
    """The header for what was recorded at `position`; with 0, for what was recorded before."""
    return {POSITION: str(position or await request.app[SERVICES].log.head())}


async def with_position(
    request: web.Request, response: web.Response, position: int
) -> web.Response:
    """The response with that header."""
    response.headers.update(await placed(request, position))
    return response
