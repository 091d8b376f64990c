"""Deliveries of a webhook over HTTP: list, show, and make again."""

from __future__ import annotations

import msgspec
from aiohttp import web

from application.errors import NotFound
from application.ports.read_model import BadCursor
from application.ports.webhooks import DeliveryState
from interfaces.common.access import load_webhook, require
from interfaces.common.api_types import DeliveryAnswer, PageAnswer, RedeliveryAnswer
from interfaces.common.problems import bad_parameter
from interfaces.common.requests import MAX_POSITION, Query, json_body, path_id
from interfaces.common.routing import OPERATOR_SCOPES, Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import json_answer
from interfaces.rest.forms import Redelivery
from interfaces.rest.webhooks.answers import delivery_answer
from interfaces.rest.webhooks.lists import reflected

LIST = ("state", "cursor", "limit", "min_position")

_redelivery = msgspec.json.Decoder(Redelivery)


async def listing(request: web.Request) -> web.Response:
    """Newest first, each with its last request and answer."""
    require(request, *OPERATOR_SCOPES)
    query, webhooks = Query(request, LIST), request.app[SERVICES].webhooks
    webhook = await load_webhook(request, path_id(request))
    await reflected(request, query)
    limit = query.integer("limit", 50, low=1, high=1000)
    position = await webhooks.position()
    found = await webhooks.deliveries(
        webhook.id,
        state=query.choice("state", DeliveryState),
        before=_position(query.text("cursor")),
        limit=limit + 1,
    )
    next = str(found[limit - 1].position) if len(found) > limit else None
    items = [delivery_answer(delivery) for delivery in found[:limit]]
    return json_answer(PageAnswer(items=items, next=next, position=position), position=position)


async def show(request: web.Request) -> web.Response:
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    webhook = await load_webhook(request, path_id(request))
    found = await request.app[SERVICES].webhooks.delivery(webhook.id, _named(request))
    return json_answer(delivery_answer(found))


async def redeliver(request: web.Request) -> web.Response:
    """202: it waits again, before the later ones of its batch."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    services = request.app[SERVICES]
    webhook = await load_webhook(request, path_id(request))
    again = await services.webhooks.redeliver(webhook.id, _named(request), at=services.now())
    return json_answer(delivery_answer(again), status=202)


async def redeliver_failed(request: web.Request) -> web.Response:
    """202 with how many deliveries wait again that had been given up."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    services = request.app[SERVICES]
    webhook = await load_webhook(request, path_id(request))
    since = (await json_body(request, _redelivery)).since
    if since.tzinfo is None:
        raise bad_parameter("since", "must be a time with its zone, such as 2026-01-31T12:00:00Z")
    count = await services.webhooks.redeliver_failed(webhook.id, since, at=services.now())
    return json_answer(RedeliveryAnswer(webhook=webhook.id, deliveries=count), status=202)


def _named(request: web.Request) -> int:
    """The position in the path; raises NotFound for what cannot be one."""
    position = _number(request.match_info["position"])
    if position is None:
        raise NotFound("there is no such delivery")
    return position


def _position(cursor: str | None) -> int | None:
    if cursor is not None and _number(cursor) is None:
        raise BadCursor(cursor)
    return None if cursor is None else _number(cursor)


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        return None
    return int(text) if int(text) <= MAX_POSITION else None


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/webhooks/{id}/deliveries",
        handler=listing,
        summary="List what a webhook was told, or is to be, newest first",
        query=LIST,
        scopes=OPERATOR_SCOPES,
        answers={200: PageAnswer[DeliveryAnswer]},
    ),
    Operation(
        method="GET",
        path="/v1/webhooks/{id}/deliveries/{position}",
        handler=show,
        summary="Show what became of one event for a webhook",
        scopes=OPERATOR_SCOPES,
        answers={200: DeliveryAnswer},
    ),
    Operation(
        method="POST",
        path="/v1/webhooks/{id}/deliveries/{position}/redeliver",
        handler=redeliver,
        summary="Tell a webhook of one event again",
        scopes=OPERATOR_SCOPES,
        answers={202: DeliveryAnswer},
    ),
    Operation(
        method="POST",
        path="/v1/webhooks/{id}/redeliver",
        handler=redeliver_failed,
        summary="Tell a webhook again of all that was given up since a time",
        body=Redelivery,
        scopes=OPERATOR_SCOPES,
        answers={202: RedeliveryAnswer},
    ),
)
