"""The HTTP application: every route, behind the middlewares that all of them share."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from infrastructure.telemetry.metrics import Metrics, VitalSigns
from interfaces import feed
from interfaces import web as page
from interfaces.feed import asyncapi
from interfaces.rest import (
    adding,
    batches,
    callbacks,
    controls,
    erasures,
    history,
    keys,
    login,
    openapi,
    operations,
    principal,
    reports,
    seals,
    starting,
    uploads,
    workers,
)
from interfaces.rest.access import access_middleware
from interfaces.rest.attempts import ATTEMPTS, FailedAttempts
from interfaces.rest.correlation import correlation_middleware, finish_headers
from interfaces.rest.cors import allow_origins
from interfaces.rest.forwarding import host_middleware
from interfaces.rest.measuring import METRICS, metrics_middleware
from interfaces.rest.operations import VITALS
from interfaces.rest.problems import problem_middleware
from interfaces.rest.routes import Operation, add_operations
from interfaces.rest.running import watch_running_requests
from interfaces.rest.streams import STREAMS, Streams
from interfaces.rest.webhooks import controls as webhook_controls
from interfaces.rest.webhooks import deliveries
from interfaces.rest.webhooks import resource as webhooks
from interfaces.services import SERVICES, Services
from interfaces.uploads import routes as transfers

# The router tries resources in this order: what small files are sent to comes first.
OPERATIONS: tuple[Operation, ...] = (
    *adding.OPERATIONS,
    *starting.OPERATIONS,
    *batches.OPERATIONS,
    *uploads.OPERATIONS,
    *controls.OPERATIONS,
    *reports.OPERATIONS,
    *workers.OPERATIONS,
    *history.OPERATIONS,
    *seals.OPERATIONS,
    *callbacks.OPERATIONS,
    *keys.OPERATIONS,
    *erasures.OPERATIONS,
    *webhooks.OPERATIONS,
    *webhook_controls.OPERATIONS,
    *deliveries.OPERATIONS,
    *login.OPERATIONS,
    *principal.OPERATIONS,
    *operations.OPERATIONS,
    *openapi.OPERATIONS,
    *asyncapi.OPERATIONS,
)


def build_app(services: Services, *, vitals: VitalSigns | None = None) -> web.Application:
    """The application for these services; `vitals` are what `/metrics` tells of the other parts.

    To be run by `interfaces.rest.server.Runner`.
    """
    middlewares = (
        correlation_middleware,
        metrics_middleware,
        problem_middleware,
        host_middleware,
        options_middleware,
        access_middleware,
    )
    # Our own bodies are measured as they are read; `max_body` is the limit of each.
    app = web.Application(middlewares=middlewares, client_max_size=services.settings.max_body)
    app[SERVICES] = services
    app[METRICS] = Metrics()
    app[ATTEMPTS] = FailedAttempts()
    app[STREAMS] = Streams()
    watch_running_requests(app, services.keys)
    app[reports.SEATS] = reports.Seats()
    if vitals is not None:
        app[VITALS] = vitals
    app.on_response_prepare.append(finish_headers)
    app.on_response_prepare.append(allow_origins)
    transfers.add_routes(app)
    add_operations(app, OPERATIONS)
    feed.add_routes(app)
    page.add_routes(app)
    openapi.describe(app, OPERATIONS)
    return app


@web.middleware
async def options_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """OPTIONS tells the methods of a path, where the path does not say more by itself."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as refusal:
        if request.method != hdrs.METH_OPTIONS:
            raise
        allowed = ", ".join(sorted({*refusal.allowed_methods, hdrs.METH_OPTIONS}))
        return web.Response(status=204, headers={hdrs.ALLOW: allowed})
