"""`GET /v1/principal`: who asks, as we see them; the page shows what they may do, and no more."""

from __future__ import annotations

from aiohttp import web

from application.ports.keys import Principal
from interfaces.rest.access import principal_of
from interfaces.rest.answers import json_answer
from interfaces.rest.params import Query
from interfaces.rest.routes import Operation


async def show(request: web.Request) -> web.Response:
    Query(request, ())
    return json_answer(principal_of(request))


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/principal",
        handler=show,
        summary="Show who asks: name, owner, scope and limits of the credential",
        answers={200: Principal},
    ),
)
