"""Erasures over HTTP, for admins: ask for one, and see what became of it."""

from __future__ import annotations

from uuid import UUID

import msgspec
from aiohttp import web

from application.ports.audit import Erasure
from domain.errors import FieldError, ValidationFailed
from domain.file import has_control_characters
from interfaces.common.access import require
from interfaces.common.api_types import PageAnswer
from interfaces.common.forwarded import public_url
from interfaces.common.problems import bad_parameter
from interfaces.common.requests import Query, json_body, path_id
from interfaces.common.routing import ADMINS, Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import json_answer
from interfaces.rest.forms import NewErasure

PAGE = 1000

_decoder = msgspec.json.Decoder(NewErasure)


async def request_erasure(request: web.Request) -> web.Response:
    """202; asked for again while it goes on, it is the same one."""
    principal = require(request)
    Query(request, ())
    form = await json_body(request, _decoder)
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
    return json_answer(erasure, status=202, headers=headers)


async def listing(request: web.Request) -> web.Response:
    require(request)
    query, services = Query(request, ("owner", "cursor", "limit")), request.app[SERVICES]
    limit = query.integer("limit", 100, low=1, high=PAGE)
    found = await services.erasures.page(
        owner=query.text("owner"), after=_cursor(query), limit=limit
    )
    next = str(found[-1].id) if len(found) == limit else None
    position = await services.queries.position()
    return json_answer(PageAnswer(items=list(found), next=next, position=position))


async def show(request: web.Request) -> web.Response:
    require(request)
    Query(request, ())
    return json_answer(await request.app[SERVICES].erasures.get(path_id(request)))


def _cursor(query: Query) -> UUID | None:
    text = query.text("cursor")
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise bad_parameter("cursor", "was not given out here") from None


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/erasures",
        handler=request_erasure,
        summary="Destroy everything personal of an owner",
        body=NewErasure,
        scopes=ADMINS,
        answers={202: Erasure},
    ),
    Operation(
        method="GET",
        path="/v1/erasures",
        handler=listing,
        summary="List erasures, oldest first",
        query=("owner", "cursor", "limit"),
        scopes=ADMINS,
        answers={200: PageAnswer[Erasure]},
    ),
    Operation(
        method="GET",
        path="/v1/erasures/{id}",
        handler=show,
        summary="What became of an erasure",
        scopes=ADMINS,
        answers={200: Erasure},
    ),
)
