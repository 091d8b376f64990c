"""`GET /v1/workers`: which processes there are, who works, and what they hold."""

from __future__ import annotations

from aiohttp import web

from interfaces.common.access import reject_batch_scoped_key, require
from interfaces.common.api_types import WorkersAnswer
from interfaces.common.requests import Query
from interfaces.common.routing import OPERATOR_SCOPES, Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import json_answer


async def listing(request: web.Request) -> web.Response:
    principal = require(request, *OPERATOR_SCOPES)
    reject_batch_scoped_key(principal)
    Query(request, ())
    port = request.app[SERVICES].workers
    workers, processes = await port.workers(owner=principal.visible_owner), await port.processes()
    return json_answer(WorkersAnswer(workers=list(workers), processes=list(processes)))


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/workers",
        handler=listing,
        summary="List the processes of all machines, the workers, and the attempts they hold",
        scopes=OPERATOR_SCOPES,
        answers={200: WorkersAnswer},
    ),
)
