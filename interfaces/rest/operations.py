"""For those who run the server: is it alive, is it ready, what does it measure."""

from __future__ import annotations

import asyncio

from aiohttp import web

from application.errors import Unavailable
from infrastructure.telemetry import CONTENT_TYPE, VitalSigns
from interfaces.common.middleware import METRICS
from interfaces.common.problems import RETRY_SOON, Problem
from interfaces.common.routing import Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import Health, json_answer

PATIENCE = 2.0  # seconds within which a ready database answers

VITALS: web.AppKey[VitalSigns] = web.AppKey("vitals")


async def healthz(request: web.Request) -> web.Response:
    """The process answers; nothing else is asked."""
    return json_answer(Health(status="ok"))


async def readyz(request: web.Request) -> web.Response:
    """The database answers, and how far the read model is behind it."""
    services = request.app[SERVICES]
    try:
        async with asyncio.timeout(PATIENCE):
            position = await services.queries.position()
            head = await services.log.head()
    except (TimeoutError, Unavailable):
        raise Problem(
            503, "not_ready", "the database does not answer", headers=RETRY_SOON
        ) from None
    lag = max(0, head - position)
    return json_answer(Health(status="ready", head=head, position=position, lag=lag))


async def metrics(request: web.Request) -> web.Response:
    """For any key: numbers of the whole server, without names of owners.

    When the database does not answer, what this process counted itself is told all the same.
    """
    measured = request.app[METRICS]
    if VITALS in request.app:
        try:
            async with asyncio.timeout(PATIENCE):
                measured.take(await request.app[VITALS]())
        except (TimeoutError, Unavailable):
            measured.lose()
    measured.room(await _room(request))
    return web.Response(body=measured.text(), headers={"Content-Type": CONTENT_TYPE})


async def _room(request: web.Request) -> int | None:
    """Room for bytes; None where that cannot be told, such as of a folder that is not there."""
    try:
        return await request.app[SERVICES].blobs.free_bytes()
    except (OSError, Unavailable):
        return None


OPERATIONS = (
    Operation(
        method="GET",
        path="/healthz",
        handler=healthz,
        summary="Whether the process lives",
        scopes=(),
        answers={200: Health},
    ),
    Operation(
        method="GET",
        path="/readyz",
        handler=readyz,
        summary="Whether the database answers, and how far the read model is",
        scopes=(),
        answers={200: Health},
    ),
    Operation(
        method="GET",
        path="/metrics",
        handler=metrics,
        summary="Metrics for Prometheus",
        answers={200: str},
        media="text/plain",
    ),
)
