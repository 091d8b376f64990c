"""`GET /v1/workers`: who works, when they were last heard of, and what they hold."""

from __future__ import annotations

import msgspec
from aiohttp import web

from application.ports.workers import WorkerView
from interfaces.rest.access import require, require_unlimited
from interfaces.rest.answers import json_answer
from interfaces.rest.params import Query
from interfaces.rest.routes import OPERATORS, Operation
from interfaces.services import SERVICES


class WorkersAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Every worker; to an operator, only with the attempts at uploads of their own owner."""

    workers: list[WorkerView]


async def listing(request: web.Request) -> web.Response:
    principal = require(request, *OPERATORS)
    require_unlimited(principal)
    Query(request, ())
    found = await request.app[SERVICES].workers.workers(owner=principal.sees)
    return json_answer(WorkersAnswer(workers=list(found)))


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/workers",
        handler=listing,
        summary="List the workers and the attempts they hold",
        scopes=OPERATORS,
        answers={200: WorkersAnswer},
    ),
)
