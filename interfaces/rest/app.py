"""The HTTP application: every route, behind the middlewares that all of them share."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from infrastructure.telemetry import Metrics, VitalSigns
from interfaces.common.access import access_middleware
from interfaces.common.failed_attempts import ATTEMPTS, FailedAttempts
from interfaces.common.forwarded import host_middleware
from interfaces.common.middleware import (
    METRICS,
    add_response_headers,
    allow_origins,
    correlation_middleware,
    metrics_middleware,
)
from interfaces.common.operations import Operation, add_operations
from interfaces.common.problems import problem_middleware
from interfaces.common.requests import defer_100_continue
from interfaces.common.responses import STREAMS, Streams
from interfaces.common.running_requests import watch_running_requests
from interfaces.common.services import SERVICES, Services
from interfaces.feed import asyncapi
from interfaces.feed import endpoints as feed
from interfaces.rest import (
    admin,
    batch_creation,
    batches,
    callbacks,
    history,
    openapi,
    reports,
    seals,
    session,
    uploads,
    webhook_deliveries,
    webhooks,
)
from interfaces.rest.admin import VITALS
from interfaces.uploads import ietf as resumable
from interfaces.uploads import ietf_protocol, tus, tus_protocol
from interfaces.uploads.content import artifact, content, download
from interfaces.uploads.setup import UPLOADS, at_collection, setup_transfers
from interfaces.web import pages

# Paths of the upload protocols.

UPLOAD = "/v1/uploads/{id}"
BATCH_UPLOADS = "/v1/batches/{id}/uploads"


def add_routes(app: web.Application) -> None:
    """Add uploads and content to an application that has its SERVICES.

    The headers of a request select one of the two protocols. Every endpoint also exists with a
    slash at its end, which tus clients add.

    `POST /v1/batches/{id}/uploads` also accepts a list of files in JSON: its own route passes the
    request to `tus.create` if `tus_protocol.is_tus(request)`.
    """
    setup_transfers(app)
    router = app.router
    _add_collection(app, UPLOADS)
    router.add_get(f"{UPLOAD}/content", content)
    router.add_get(f"{UPLOAD}/artifacts/{{name}}", artifact)
    if endpoint := app[SERVICES].settings.tus_path.rstrip("/"):
        _add_collection(app, endpoint, tus_endpoint=True)
    # Last, so that the route of the list of files in JSON joins the same resource of the router.
    router.add_route(hdrs.METH_OPTIONS, BATCH_UPLOADS, resumable.options)


def _add_collection(app: web.Application, path: str, *, tus_endpoint: bool = False) -> None:
    """Add a collection and its resources; a `tus_endpoint` answers GET with the bytes, as tusd."""
    either = dispatch_protocol
    collection = (
        (hdrs.METH_OPTIONS, resumable.options),
        (hdrs.METH_POST, either(tus.create, resumable.create)),
    )
    resource = (
        (hdrs.METH_OPTIONS, resumable.options),
        (hdrs.METH_HEAD, either(tus.head, resumable.head)),
        (hdrs.METH_PATCH, either(tus.append, resumable.append)),
        (hdrs.METH_DELETE, either(tus.terminate, resumable.cancel)),
        (hdrs.METH_POST, either(tus.method_override, resumable.method_override)),
        *(((hdrs.METH_GET, download),) if tus_endpoint else ()),
    )
    for at, routes in ((path, collection), (f"{path}/{{id}}", resource)):
        for spelled in (at, f"{at}/"):
            for method, handler in routes:
                answer = at_collection(path, handler) if tus_endpoint else handler
                expect = defer_100_continue if method in (hdrs.METH_POST, hdrs.METH_PATCH) else None
                app.router.add_route(method, spelled, answer, expect_handler=expect)


def dispatch_protocol(of_tus: Handler, of_ietf: Handler) -> Handler:
    """Return a handler for a path that both protocols share; tus is the default."""

    async def wrapped(request: web.Request) -> web.StreamResponse:
        is_ietf = not tus_protocol.is_tus(request) and ietf_protocol.is_ietf(request)
        return await (of_ietf if is_ietf else of_tus)(request)

    return wrapped


# The router tries resources in this order: the routes that receive small files come first.
OPERATIONS: tuple[Operation, ...] = (
    *batch_creation.OPERATIONS,
    *batches.OPERATIONS,
    *uploads.OPERATIONS,
    *reports.OPERATIONS,
    *history.OPERATIONS,
    *seals.OPERATIONS,
    *callbacks.OPERATIONS,
    *webhooks.OPERATIONS,
    *webhook_deliveries.OPERATIONS,
    *session.LOGIN_OPERATIONS,
    *session.PRINCIPAL_OPERATIONS,
    *admin.OPERATIONS,
    *openapi.OPERATIONS,
    *asyncapi.OPERATIONS,
)


def build_app(services: Services, *, vitals: VitalSigns | None = None) -> web.Application:
    """Build the web application for these services, to be run by `interfaces.common.server.Runner`.

    `vitals` are the values of `/metrics` about the other components of the process.
    """
    middlewares = (
        correlation_middleware,
        metrics_middleware,
        problem_middleware,
        host_middleware,
        options_middleware,
        access_middleware,
    )
    # Handlers limit bodies as they read them; `max_body` is the limit of each.
    app = web.Application(middlewares=middlewares, client_max_size=services.settings.max_body)
    app[SERVICES] = services
    app[METRICS] = Metrics()
    app[ATTEMPTS] = FailedAttempts()
    app[STREAMS] = Streams()
    watch_running_requests(app, services.keys)
    app[reports.REPORT_LIMITER] = reports.ReportLimiter()
    if vitals is not None:
        app[VITALS] = vitals
    app.on_response_prepare.append(add_response_headers)
    app.on_response_prepare.append(allow_origins)
    add_routes(app)
    add_operations(app, OPERATIONS)
    # After the path without the slash, which receives small files: the router tries it first.
    app.router.add_route(hdrs.METH_OPTIONS, f"{BATCH_UPLOADS}/", resumable.options)
    feed.add_routes(app)
    pages.add_routes(app)
    openapi.install_document(app, OPERATIONS)
    return app


@web.middleware
async def options_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer OPTIONS with the methods of the path, unless the path has a handler for it."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as refusal:
        if request.method != hdrs.METH_OPTIONS:
            raise
        allowed = ", ".join(sorted({*refusal.allowed_methods, hdrs.METH_OPTIONS}))
        return web.Response(status=204, headers={hdrs.ALLOW: allowed})
