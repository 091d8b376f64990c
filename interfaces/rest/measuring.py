"""Counts and times every request, by route."""

from __future__ import annotations

import time

from aiohttp import web
from aiohttp.typedefs import Handler

from infrastructure.telemetry.metrics import Metrics

METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)

CUT_SHORT = 499  # the customary number for a client that left before its answer

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@web.middleware
async def metrics_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Labels are routes and known methods: what clients make up must not grow the registry."""
    metrics = request.app[METRICS]
    began, status = time.monotonic(), CUT_SHORT
    metrics.begin()
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as answer:
        status = answer.status
        raise
    finally:
        resource = request.match_info.route.resource
        metrics.end(
            request.method if request.method in _METHODS else "other",
            resource.canonical if resource is not None else "none",
            status,
            time.monotonic() - began,
            request.content.total_bytes,
        )
