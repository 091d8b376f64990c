"""Keys over HTTP, for admins: make, list, revoke."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from aiohttp import web

from application.errors import NotFound
from application.ports.auth import Key, Principal, Scope
from domain.errors import FieldError, ValidationFailed
from domain.file import has_control_characters
from interfaces.common.access import require
from interfaces.common.api_types import NewKeyAnswer, PageAnswer
from interfaces.common.forwarded import public_url
from interfaces.common.requests import Query, json_body
from interfaces.common.routing import ADMINS, Operation
from interfaces.common.services import SERVICES, Services
from interfaces.rest.answers import json_answer
from interfaces.rest.forms import NewKey

_decoder = msgspec.json.Decoder(NewKey)


async def create(request: web.Request) -> web.Response:
    """201 with the key and its text, which is shown this once."""
    principal = require(request)
    Query(request, ())
    services = request.app[SERVICES]
    form = await json_body(request, _decoder)
    owner = await _owner(services, principal, form)
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
    return json_answer(NewKeyAnswer(key=key, text=text), status=201, headers=headers)


async def listing(request: web.Request) -> web.Response:
    """Keys of every owner, or of the one asked for, newest first; never a secret."""
    require(request)
    query, services = Query(request, ("owner",)), request.app[SERVICES]
    keys = await services.keys.all(owner=query.text("owner"))
    position = await services.queries.position()
    return json_answer(PageAnswer(items=list(keys), next=None, position=position))


async def revoke(request: web.Request) -> web.Response:
    """Ends a key at once, with the sessions made from it."""
    principal = require(request)
    Query(request, ())
    id, keys = request.match_info["id"], request.app[SERVICES].keys
    return json_answer(await keys.revoke(id, owner=None, by=principal.name))


async def _owner(services: Services, principal: Principal, form: NewKey) -> str:
    """Whose the key will be; raises ValidationFailed where the parts of the form do not fit."""
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


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/keys",
        handler=create,
        summary="Make a key; its text is shown this once",
        body=NewKey,
        scopes=ADMINS,
        answers={201: NewKeyAnswer},
    ),
    Operation(
        method="GET",
        path="/v1/keys",
        handler=listing,
        summary="List keys, newest first",
        query=("owner",),
        scopes=ADMINS,
        answers={200: PageAnswer[Key]},
    ),
    Operation(
        method="DELETE",
        path="/v1/keys/{id}",
        handler=revoke,
        summary="Revoke a key at once",
        scopes=ADMINS,
        answers={200: Key},
    ),
)
