"""Administration over HTTP: keys, erasures, workers, health and metrics."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import Meta

from application.errors import NotFound, Unavailable
from application.ports.audit import Erasure
from application.ports.auth import Key, Principal, Scope
from domain.errors import FieldError, ValidationFailed
from domain.file import has_control_characters
from infrastructure.telemetry import CONTENT_TYPE, VitalSigns
from interfaces.common.access import reject_batch_scoped_key, require
from interfaces.common.api_types import NewKeyResponse, PageResponse, RequestBody, WorkersResponse
from interfaces.common.forwarded import public_url
from interfaces.common.middleware import METRICS
from interfaces.common.operations import ADMIN_SCOPES, OPERATOR_SCOPES, Operation
from interfaces.common.problems import RETRY_SOON, Problem, bad_parameter
from interfaces.common.requests import Query, json_body, path_id
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES, Services

MAX_KEY_EXPIRY = 10 * 365 * 86400  # seconds
MAX_PAGE_ERASURES = 1000
READY_TIMEOUT = 2.0  # seconds within which a ready database responds

VITALS: web.AppKey[VitalSigns] = web.AppKey("vitals")


class NewKey(RequestBody, frozen=True, kw_only=True):
    """A key to create; `expires_in` is in seconds, `batch` limits it to one batch."""

    scope: Scope
    owner: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    label: Annotated[str, Meta(max_length=200)] = ""
    batch: UUID | None = None
    expires_in: Annotated[float, Meta(gt=0, le=MAX_KEY_EXPIRY)] | None = None


class NewErasure(RequestBody, frozen=True, kw_only=True):
    """The owner whose data to destroy, and the recorded reason."""

    owner: Annotated[str, Meta(min_length=1, max_length=200)]
    reason: Annotated[str, Meta(max_length=1000)] = ""


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Health of the server; `lag` is how many positions the read model is behind the log."""

    status: str
    head: int | None = None
    position: int | None = None
    lag: int | None = None


async def create_key(request: web.Request) -> web.Response:
    """Create a key: 201 with its text, which is shown only here."""
    principal = require(request)
    Query(request, ())
    services = request.app[SERVICES]
    form = await json_body(request, msgspec.json.Decoder(NewKey))
    owner = await _resolve_key_owner(services, principal, form)
    expires_at = services.now() + timedelta(seconds=form.expires_in) if form.expires_in else None
    key, text = await services.keys.create(
        owner=owner,
        scope=form.scope,
        label=form.label,
        batch=form.batch,
        expires_at=expires_at,
        by=principal.name,
    )
    headers = {"Location": public_url(request, f"/v1/keys/{key.id}")}
    return json_response(NewKeyResponse(key=key, text=text), status=201, headers=headers)


async def list_keys(request: web.Request) -> web.Response:
    """Respond with the keys of every owner, or of one, newest first; never with a secret."""
    require(request)
    query, services = Query(request, ("owner",)), request.app[SERVICES]
    keys = await services.keys.all(owner=query.text("owner"))
    position = await services.queries.position()
    return json_response(PageResponse(items=list(keys), next=None, position=position))


async def revoke_key(request: web.Request) -> web.Response:
    """End a key at once, with the sessions that were created from it."""
    principal = require(request)
    Query(request, ())
    id, keys = request.match_info["id"], request.app[SERVICES].keys
    return json_response(await keys.revoke(id, owner=None, by=principal.name))


async def request_erasure(request: web.Request) -> web.Response:
    """Start an erasure: 202 with it, or with the one of this owner that is running."""
    principal = require(request)
    Query(request, ())
    form = await json_body(request, msgspec.json.Decoder(NewErasure))
    faults = [
        FieldError(name, "must not hold control characters")
        for name in ("owner", "reason")
        if has_control_characters(getattr(form, name))
    ]
    if faults:
        raise ValidationFailed(*faults)
    services = request.app[SERVICES]
    erasure = await services.erasures.request(
        Erasure(
            id=services.new_id(),
            owner=form.owner,
            reason=form.reason,
            requested_by=principal.name,
            requested_at=services.now(),
        )
    )
    headers = {"Location": public_url(request, f"/v1/erasures/{erasure.id}")}
    return json_response(erasure, status=202, headers=headers)


async def list_erasures(request: web.Request) -> web.Response:
    require(request)
    query, services = Query(request, ("owner", "cursor", "limit")), request.app[SERVICES]
    limit = query.integer("limit", 100, low=1, high=MAX_PAGE_ERASURES)
    found = await services.erasures.page(
        owner=query.text("owner"), after=_erasure_cursor(query), limit=limit
    )
    next = str(found[-1].id) if len(found) == limit else None
    position = await services.queries.position()
    return json_response(PageResponse(items=list(found), next=next, position=position))


async def show_erasure(request: web.Request) -> web.Response:
    require(request)
    Query(request, ())
    return json_response(await request.app[SERVICES].erasures.get(path_id(request)))


async def list_workers(request: web.Request) -> web.Response:
    principal = require(request, *OPERATOR_SCOPES)
    reject_batch_scoped_key(principal)
    Query(request, ())
    port = request.app[SERVICES].workers
    workers, processes = await port.workers(owner=principal.visible_owner), await port.processes()
    return json_response(WorkersResponse(workers=list(workers), processes=list(processes)))


async def healthz(request: web.Request) -> web.Response:
    """Respond as long as the process lives; nothing else is checked."""
    return json_response(Health(status="ok"))


async def readyz(request: web.Request) -> web.Response:
    """Check that the database responds, and respond with the lag of the read model."""
    services = request.app[SERVICES]
    try:
        async with asyncio.timeout(READY_TIMEOUT):
            position = await services.queries.position()
            head = await services.log.head()
    except (TimeoutError, Unavailable):
        raise Problem(
            503, "not_ready", "the database does not answer", headers=RETRY_SOON
        ) from None
    lag = max(0, head - position)
    return json_response(Health(status="ready", head=head, position=position, lag=lag))


async def metrics(request: web.Request) -> web.Response:
    """Respond to any key with metrics of the whole server, without names of owners.

    If the database does not respond, the metrics that this process counts itself are returned.
    """
    measured = request.app[METRICS]
    if VITALS in request.app:
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                measured.update(await request.app[VITALS]())
        except (TimeoutError, Unavailable):
            measured.lose()
    measured.room(await _free_bytes(request))
    return web.Response(body=measured.text(), headers={"Content-Type": CONTENT_TYPE})


async def _free_bytes(request: web.Request) -> int | None:
    """Return the free space for bytes; None if it is unknown, such as for a missing folder."""
    try:
        return await request.app[SERVICES].blobs.free_bytes()
    except (OSError, Unavailable):
        return None


async def _resolve_key_owner(services: Services, principal: Principal, form: NewKey) -> str:
    """Return the owner of the new key. Raises ValidationFailed if fields of the form contradict."""
    faults = [
        FieldError(name, "must not hold control characters")
        for name in ("label", "owner")
        if has_control_characters(getattr(form, name) or "")
    ]
    if form.batch is not None and form.scope not in (Scope.UPLOADER, Scope.VIEWER):
        faults.append(FieldError("batch", "only an uploader or a viewer is limited to a batch"))
    owner = form.owner
    if form.batch is not None:
        try:
            batch_owner = (await services.log.batch(form.batch)).owner
            owner = owner or batch_owner
            if owner != batch_owner:
                faults.append(FieldError("owner", "is not the owner of the batch"))
        except NotFound:
            faults.append(FieldError("batch", "does not exist"))
    if faults:
        raise ValidationFailed(*faults)
    return owner or principal.owner


def _erasure_cursor(query: Query) -> UUID | None:
    text = query.text("cursor")
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise bad_parameter("cursor", "was not given out here") from None


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/workers",
        handler=list_workers,
        summary="List the processes of all machines, the workers, and the attempts they hold",
        scopes=OPERATOR_SCOPES,
        responses={200: WorkersResponse},
    ),
    Operation(
        method="POST",
        path="/v1/keys",
        handler=create_key,
        summary="Create a key; its text is shown only in this response",
        body=NewKey,
        scopes=ADMIN_SCOPES,
        responses={201: NewKeyResponse},
    ),
    Operation(
        method="GET",
        path="/v1/keys",
        handler=list_keys,
        summary="List keys, newest first",
        query=("owner",),
        scopes=ADMIN_SCOPES,
        responses={200: PageResponse[Key]},
    ),
    Operation(
        method="DELETE",
        path="/v1/keys/{id}",
        handler=revoke_key,
        summary="Revoke a key at once",
        scopes=ADMIN_SCOPES,
        responses={200: Key},
    ),
    Operation(
        method="POST",
        path="/v1/erasures",
        handler=request_erasure,
        summary="Destroy everything personal of an owner",
        body=NewErasure,
        scopes=ADMIN_SCOPES,
        responses={202: Erasure},
    ),
    Operation(
        method="GET",
        path="/v1/erasures",
        handler=list_erasures,
        summary="List erasures, oldest first",
        query=("owner", "cursor", "limit"),
        scopes=ADMIN_SCOPES,
        responses={200: PageResponse[Erasure]},
    ),
    Operation(
        method="GET",
        path="/v1/erasures/{id}",
        handler=show_erasure,
        summary="Show an erasure",
        scopes=ADMIN_SCOPES,
        responses={200: Erasure},
    ),
    Operation(
        method="GET",
        path="/healthz",
        handler=healthz,
        summary="Whether the process lives",
        scopes=(),
        responses={200: Health},
    ),
    Operation(
        method="GET",
        path="/readyz",
        handler=readyz,
        summary="Whether the database responds, and the lag of the read model",
        scopes=(),
        responses={200: Health},
    ),
    Operation(
        method="GET",
        path="/metrics",
        handler=metrics,
        summary="Metrics for Prometheus",
        responses={200: str},
        media="text/plain",
    ),
)
