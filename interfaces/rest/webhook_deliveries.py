"""Deliveries of a webhook over HTTP: list, show, redeliver."""

from __future__ import annotations

from datetime import datetime

import msgspec
from aiohttp import web

from application.errors import NotFound
from application.ports.read_model import BadCursor
from application.ports.webhooks import Delivery, DeliveryState
from interfaces.common.access import load_webhook, require
from interfaces.common.api_types import (
    DeliveryResponse,
    PageResponse,
    RedeliveryResponse,
    RequestBody,
)
from interfaces.common.operations import OPERATOR_SCOPES, Operation
from interfaces.common.problems import bad_parameter
from interfaces.common.requests import MAX_POSITION, Query, json_body, path_id
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES
from interfaces.rest.webhooks import wait_for_listed_position

LIST_PARAMETERS = ("state", "cursor", "limit", "min_position")


class RedeliverRequest(RequestBody, frozen=True, kw_only=True):
    """Redeliver what failed at this time or later."""

    since: datetime


async def list_deliveries(request: web.Request) -> web.Response:
    """Respond with the deliveries, newest first, each with its last request and response."""
    require(request, *OPERATOR_SCOPES)
    query, webhooks = Query(request, LIST_PARAMETERS), request.app[SERVICES].webhooks
    webhook = await load_webhook(request, path_id(request))
    await wait_for_listed_position(request, query)
    limit = query.integer("limit", 50, low=1, high=1000)
    position = await webhooks.position()
    found = await webhooks.deliveries(
        webhook.id,
        state=query.choice("state", DeliveryState),
        before=_cursor_position(query.text("cursor")),
        limit=limit + 1,
    )
    next = str(found[limit - 1].position) if len(found) > limit else None
    items = [_delivery_response(delivery) for delivery in found[:limit]]
    response = PageResponse(items=items, next=next, position=position)
    return json_response(response, position=position)


async def show_delivery(request: web.Request) -> web.Response:
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    webhook = await load_webhook(request, path_id(request))
    found = await request.app[SERVICES].webhooks.delivery(webhook.id, _path_position(request))
    return json_response(_delivery_response(found))


async def redeliver(request: web.Request) -> web.Response:
    """Queue a delivery again, before the later ones of its batch: 202."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    services = request.app[SERVICES]
    webhook = await load_webhook(request, path_id(request))
    position = _path_position(request)
    again = await services.webhooks.redeliver(webhook.id, position, at=services.now())
    return json_response(_delivery_response(again), status=202)


async def redeliver_failed(request: web.Request) -> web.Response:
    """Queue all failed deliveries since a time again: 202 with their number."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    services = request.app[SERVICES]
    webhook = await load_webhook(request, path_id(request))
    since = (await json_body(request, msgspec.json.Decoder(RedeliverRequest))).since
    if since.tzinfo is None:
        raise bad_parameter("since", "must be a time with its zone, such as 2026-01-31T12:00:00Z")
    count = await services.webhooks.redeliver_failed(webhook.id, since, at=services.now())
    return json_response(RedeliveryResponse(webhook=webhook.id, deliveries=count), status=202)


def _delivery_response(delivery: Delivery) -> DeliveryResponse:
    return DeliveryResponse(
        id=delivery.id,
        webhook=delivery.webhook,
        position=delivery.position,
        type=delivery.type,
        batch=None if delivery.is_test else delivery.lane,
        stream=delivery.stream,
        state=delivery.state,
        attempts=delivery.attempts,
        queued_at=delivery.queued_at,
        next_at=delivery.next_at,
        ended_at=delivery.ended_at,
        last=delivery.last,
    )


def _path_position(request: web.Request) -> int:
    """Return the position in the path. Raises NotFound for an invalid one."""
    position = _parse_position(request.match_info["position"])
    if position is None:
        raise NotFound("there is no such delivery")
    return position


def _cursor_position(cursor: str | None) -> int | None:
    if cursor is not None and _parse_position(cursor) is None:
        raise BadCursor(cursor)
    return None if cursor is None else _parse_position(cursor)


def _parse_position(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        return None
    return int(text) if int(text) <= MAX_POSITION else None


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/webhooks/{id}/deliveries",
        handler=list_deliveries,
        summary="List the deliveries of a webhook, newest first",
        query=LIST_PARAMETERS,
        scopes=OPERATOR_SCOPES,
        responses={200: PageResponse[DeliveryResponse]},
    ),
    Operation(
        method="GET",
        path="/v1/webhooks/{id}/deliveries/{position}",
        handler=show_delivery,
        summary="Show the delivery of one event to a webhook",
        scopes=OPERATOR_SCOPES,
        responses={200: DeliveryResponse},
    ),
    Operation(
        method="POST",
        path="/v1/webhooks/{id}/deliveries/{position}/redeliver",
        handler=redeliver,
        summary="Deliver one event to a webhook again",
        scopes=OPERATOR_SCOPES,
        responses={202: DeliveryResponse},
    ),
    Operation(
        method="POST",
        path="/v1/webhooks/{id}/redeliver",
        handler=redeliver_failed,
        summary="Deliver to a webhook again what failed since a time",
        body=RedeliverRequest,
        scopes=OPERATOR_SCOPES,
        responses={202: RedeliveryResponse},
    ),
)
