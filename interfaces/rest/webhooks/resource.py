"""Webhooks over HTTP: add, list, show, change, remove."""

from __future__ import annotations

import msgspec
from aiohttp import web

from application import commands
from application.handlers.execute import execute
from application.handlers.webhooks import add_webhook
from application.ports.webhooks import WebhookHealth
from domain.errors import FieldError, ValidationFailed
from domain.file import has_control_characters
from domain.webhook.events import WebhookFilter, url_error
from infrastructure.outbound import BadDestination, PrivateAddress, parse_destination
from interfaces.common.access import load_webhook, require
from interfaces.common.api_types import PageAnswer, SecretAnswer, WebhookAnswer
from interfaces.common.forwarded import public_url
from interfaces.common.problems import Problem
from interfaces.common.requests import Query, json_body, path_id
from interfaces.common.routing import OPERATOR_SCOPES, Operation
from interfaces.common.services import SERVICES, Services
from interfaces.rest.answers import json_answer
from interfaces.rest.forms import ChangedWebhook, NewWebhook
from interfaces.rest.idempotency import context_of
from interfaces.rest.starting import owner_of
from interfaces.rest.webhooks.answers import webhook_answer
from interfaces.rest.webhooks.lists import reflected, seen, shown

MOST_WEBHOOKS = 50  # of one owner
LIST = ("cursor", "limit", "min_position")

_new = msgspec.json.Decoder(NewWebhook)
_changed = msgspec.json.Decoder(ChangedWebhook)


async def add(request: web.Request) -> web.Response:
    """201 with the webhook and its secret, which is shown this once."""
    principal = require(request, *OPERATOR_SCOPES)
    Query(request, ())
    services = request.app[SERVICES]
    form = await json_body(request, _new)
    owner = owner_of(form.owner, principal)
    fields = msgspec.structs.asdict(form)
    if has_control_characters(fields.pop("owner") or ""):
        raise ValidationFailed(FieldError("owner", "must not hold control characters"))
    subscription = WebhookFilter(**fields)
    _require_reachable(subscription.url, services)
    if await services.webhooks.count(owner) >= MOST_WEBHOOKS:
        detail = f"an owner has at most {MOST_WEBHOOKS} webhooks: remove one first"
        raise Problem(409, "too_many_webhooks", detail)
    id = services.new_id()
    # Kept before it is named: an event never speaks of a secret that is not there.
    secret = await services.webhooks.make_secret(id)
    command = commands.AddWebhook(id=id, owner=owner, subscription=subscription, secret=secret.id)
    added = await add_webhook(services.log, command, context_of(request))
    await seen(services, added.position)
    webhook = webhook_answer(added.aggregate, WebhookHealth(), services.now())
    answer = SecretAnswer(webhook=webhook, secret=secret.text, position=added.position)
    headers = {"Location": public_url(request, f"/v1/webhooks/{id}")}
    return json_answer(answer, status=201, position=added.position, headers=headers)


async def listing(request: web.Request) -> web.Response:
    """The webhooks of the owner, newest first; an admin sees those of every owner."""
    principal = require(request, *OPERATOR_SCOPES)
    services, query = request.app[SERVICES], Query(request, LIST)
    await reflected(request, query)
    page = await services.webhooks.all(
        owner=principal.visible_owner,
        cursor=query.text("cursor"),
        limit=query.integer("limit", 50, low=1, high=1000),
    )
    fares = await services.webhooks.standings([webhook.id for webhook in page.items])
    items = [
        webhook_answer(webhook, fares.get(webhook.id, WebhookHealth()), services.now())
        for webhook in page.items
    ]
    answer = PageAnswer(items=items, next=page.next, position=page.position)
    return json_answer(answer, position=page.position)


async def show(request: web.Request) -> web.Response:
    """As the log has it: what was just changed is seen."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    return json_answer(await shown(request, await load_webhook(request, path_id(request))))


async def change(request: web.Request) -> web.Response:
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    services = request.app[SERVICES]
    webhook = await load_webhook(request, path_id(request))
    form = await json_body(request, _changed)
    given = {
        name: value
        for name, value in msgspec.structs.asdict(form).items()
        if value is not msgspec.UNSET
    }
    subscription = msgspec.structs.replace(webhook.subscription, **given)
    _require_reachable(subscription.url, services)
    command = commands.ChangeWebhook(webhook=webhook.id, subscription=subscription)
    changed = await execute(services.log, command, context_of(request))
    await seen(services, changed.position)
    return json_answer(await shown(request, changed.aggregate))


async def remove(request: web.Request) -> web.Response:
    """204: nothing more is told, not even of what waits."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    services = request.app[SERVICES]
    command = commands.RemoveWebhook(webhook=(await load_webhook(request, path_id(request))).id)
    removed = await execute(services.log, command, context_of(request))
    await seen(services, removed.position)
    return web.Response(status=204)


def _require_reachable(url: str, services: Services) -> None:
    """Raise ValidationFailed for a URL that no request could ever be sent to.

    A name that resolves to a private address is refused each time that a request leaves.
    """
    if url_error(url):
        return  # the subscription's own rules report it
    try:
        destination = parse_destination(url)
        if not services.settings.allow_private_addresses:
            destination.require_public()
    except BadDestination as error:
        raise ValidationFailed(FieldError("url", str(error))) from None
    except PrivateAddress as error:
        raise ValidationFailed(FieldError("url", f"leads to a private network: {error}")) from None


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/webhooks",
        handler=add,
        summary="Add a webhook; its secret is shown this once",
        body=NewWebhook,
        scopes=OPERATOR_SCOPES,
        answers={201: SecretAnswer},
    ),
    Operation(
        method="GET",
        path="/v1/webhooks",
        handler=listing,
        summary="List webhooks, newest first",
        query=LIST,
        scopes=OPERATOR_SCOPES,
        answers={200: PageAnswer[WebhookAnswer]},
    ),
    Operation(
        method="GET",
        path="/v1/webhooks/{id}",
        handler=show,
        summary="Show a webhook, and how it fares",
        scopes=OPERATOR_SCOPES,
        answers={200: WebhookAnswer},
    ),
    Operation(
        method="PATCH",
        path="/v1/webhooks/{id}",
        handler=change,
        summary="Change what a webhook is told, or where",
        body=ChangedWebhook,
        scopes=OPERATOR_SCOPES,
        answers={200: WebhookAnswer},
    ),
    Operation(
        method="DELETE",
        path="/v1/webhooks/{id}",
        handler=remove,
        summary="Remove a webhook, and what waits for it",
        scopes=OPERATOR_SCOPES,
        answers={204: None},
    ),
)
