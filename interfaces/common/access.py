"""Authentication and authorization of requests: by API key or browser session, except on public
paths."""

from __future__ import annotations

from urllib.parse import urlsplit
from uuid import UUID

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from application.errors import NotFound
from application.ports.auth import Credential, Principal, Scope
from application.transfers.errors import AccessEnded
from domain.batch.aggregate import Batch
from domain.upload.aggregate import Upload
from domain.webhook.aggregate import Webhook
from interfaces.common.failed_attempts import attempts_of
from interfaces.common.forwarded import configured_origin, forwarded_origin
from interfaces.common.problems import Problem, unauthenticated
from interfaces.common.responses import LARGE_RESPONSE, STREAMS, Stream
from interfaces.common.running_requests import RUNNING
from interfaces.common.services import SERVICES

SESSION_COOKIE = "uptrail_session"

PUBLIC = frozenset(
    {"/", "/favicon.ico", "/healthz", "/readyz", "/login", "/openapi.json", "/asyncapi.json"}
)
PUBLIC_PREFIXES = ("/static/", "/v1/callbacks/{token}/")
"""Paths without authentication: health, API descriptions and the page's own files; never data.

The token in a callback's path is its credential, which its handlers check.
"""

FIRST_MESSAGE = frozenset({"/v1/feed"})
"""Paths on which a WebSocket may authenticate by its first message, which the handler checks."""

PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)
CREDENTIAL: web.RequestKey[Credential] = web.RequestKey("credential", Credential)

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@web.middleware
async def access_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Require a valid credential on every path that is not public.

    OPTIONS is exempt: browsers send it without credentials, and its response holds no data.
    """
    if is_public(request) or request.method == hdrs.METH_OPTIONS:
        return await handler(request)
    known = await _authenticate(request)
    if known is None:
        if not (request.path in FIRST_MESSAGE and _is_websocket(request)):
            raise unauthenticated("send Authorization: Bearer up_... or sign in")
        return await handler(request)
    request[CREDENTIAL], request[PRINCIPAL] = known
    requests = request.app[RUNNING]
    running = requests.add(request, known[0])
    try:
        response = await handler(request)
    finally:
        requests.remove(request)
    if running.ended and request.method in _SAFE and not response.prepared:
        raise AccessEnded
    if request.method == hdrs.METH_GET and _is_large(response):
        request.app[STREAMS].open(request, known[1].name, Stream.DOCUMENT)
    return response


def _is_large(response: web.StreamResponse) -> bool:
    """Return whether the response is one large body, held in memory until the client reads it."""
    body = response.body if isinstance(response, web.Response) else None
    return isinstance(body, bytes) and len(body) >= LARGE_RESPONSE


def is_public(request: web.Request) -> bool:
    """Return whether the path is public, judged by its route and not by its spelling."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else ""
    return path in PUBLIC or f"{path}/".startswith(PUBLIC_PREFIXES)


def principal_of(request: web.Request) -> Principal:
    """Return the authenticated principal. Raises a 401 Problem without one."""
    if PRINCIPAL not in request:
        raise unauthenticated("sign in first")
    return request[PRINCIPAL]


def require(request: web.Request, *scopes: Scope) -> Principal:
    """Return the principal if it has one of the scopes; an admin may do everything.

    Without scopes, only an admin whose key is not limited to a batch. Raises a 403 Problem
    otherwise: a scope limits actions; for visibility see `require_owned`.
    """
    principal = principal_of(request)
    if principal.scope is Scope.ADMIN and not scopes:
        reject_batch_scoped_key(principal)
    if principal.scope is Scope.ADMIN or principal.scope in scopes:
        return principal
    needed = " or ".join(scopes) or Scope.ADMIN
    raise Problem(403, "scope_missing", f"this needs the scope {needed}")


def reject_batch_scoped_key(principal: Principal) -> None:
    """Raise a 403 Problem for a key that is limited to one batch."""
    if principal.batch is not None:
        raise Problem(403, "limited_key", f"this key is limited to batch {principal.batch}")


def require_owned(principal: Principal, *, owner: str, batch: UUID) -> None:
    """Raise NotFound for a resource of another owner, or of another batch than the key's."""
    if not _is_visible(principal, owner, batch):
        raise NotFound("not owned")


async def require_visible_stream(request: web.Request, id: UUID) -> None:
    """Raise NotFound for a stream that is absent, or that the principal may not see.

    An absent stream and a foreign one cost the same, so that timing does not reveal which it is:
    one statement, whether or not the foreign one is cached, and none of its events are loaded. A
    visible stream in the cache needs no statement.
    """
    principal, log = principal_of(request), request.app[SERVICES].log
    known = log.remembered(id)
    if known is not None:
        batch = known.batch if isinstance(known, Upload) else id
        if _is_visible(principal, known.owner, batch):
            return
    origin = await log.origin(id)
    if origin is None or not _is_visible(principal, origin.owner, origin.batch or id):
        raise NotFound("absent, or not owned")


def _is_visible(principal: Principal, owner: str, batch: UUID) -> bool:
    return principal.visible_owner in (None, owner) and principal.batch in (None, batch)


async def load_batch(request: web.Request, id: UUID) -> Batch:
    """Load the batch from the log. Raises NotFound, also if the principal may not see it."""
    await require_visible_stream(request, id)
    batch = await request.app[SERVICES].log.batch(id)
    require_owned(principal_of(request), owner=batch.owner, batch=batch.id)
    return batch


async def load_upload(request: web.Request, id: UUID) -> Upload:
    """Load the upload from the log. Raises NotFound, also if the principal may not see it."""
    await require_visible_stream(request, id)
    upload = await request.app[SERVICES].log.upload(id)
    require_owned(principal_of(request), owner=upload.owner, batch=upload.batch)
    return upload


async def load_webhook(request: web.Request, id: UUID, *, also_removed: bool = False) -> Webhook:
    """Load the webhook from the log. Raises NotFound, also if the principal may not see it.

    A key that is limited to one batch sees no webhooks.
    """
    log, principal = request.app[SERVICES].log, principal_of(request)
    await require_visible_stream(request, id)
    log.forget(id)
    webhook = await log.webhook(id)
    hidden = webhook.removed and not also_removed
    if (
        hidden
        or principal.batch is not None
        or principal.visible_owner not in (None, webhook.owner)
    ):
        raise NotFound("absent, or not owned")
    return webhook


async def _authenticate(request: web.Request) -> tuple[Credential, Principal] | None:
    """Return the credential and its principal, None without a credential.

    Raises a 401 Problem for an invalid one.
    """
    keys = request.app[SERVICES].keys
    header = request.headers.get(hdrs.AUTHORIZATION)
    if header is not None:
        scheme, _, text = header.partition(" ")
        credential = Credential(text.strip())

        is_bearer = scheme.lower() == "bearer"
        known = keys.recently_authenticated(credential.text) if is_bearer else None
        if known is None:

            async def check_key() -> Principal | None:
                return await keys.authenticate(credential.text) if is_bearer else None

            known = await attempts_of(request).authenticate("key", credential.text, check_key)
        if known is None:
            raise unauthenticated("the key is unknown, revoked or expired", error="invalid_token")
        return credential, known
    token = request.cookies.get(SESSION_COOKIE)
    if token is None:
        return None
    known = await attempts_of(request).authenticate("session", "", lambda: keys.session(token))
    if known is None:
        raise unauthenticated("the session is over: sign in again", error="invalid_token")
    if request.method not in _SAFE or _is_websocket(request):
        require_same_origin(request)
    return Credential(token, is_session=True), known


def require_same_origin(request: web.Request) -> None:
    """Raise a 403 Problem if a browser sends the request for a page of another origin, or might.

    A proxy in front may terminate TLS: `https` on our own host is our origin too.
    """
    origin = request.headers.get(hdrs.ORIGIN, "")
    if origin in request.app[SERVICES].settings.allowed_origins:
        return
    parts, front = urlsplit(origin), forwarded_origin(request)
    host = request.host if front is None else front.host
    if origin.lower() == configured_origin(request):
        return
    if parts.netloc.lower() != host.lower() or parts.scheme not in (
        "https",
        request.scheme,
    ):
        raise Problem(
            403, "foreign_origin", "only our own pages may do this, and those of allowed_origins"
        )


def require_allowed_origin(request: web.Request) -> None:
    """Raise a 403 Problem for a WebSocket of a page that CORS would not let read our responses.

    Browsers do not apply CORS to WebSockets, so the server does. A browser names the page in Origin
    and cannot send Authorization with the handshake, so a client that sends it is not a page. With
    `*`, pages of any origin may connect with a key.
    """
    if hdrs.ORIGIN not in request.headers or hdrs.AUTHORIZATION in request.headers:
        return
    if PRINCIPAL in request or "*" not in request.app[SERVICES].settings.allowed_origins:
        require_same_origin(request)


def _is_websocket(request: web.Request) -> bool:
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
