"""Webhooks over HTTP: add, list, show, and the commands to a webhook."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from application.commands import AddWebhook, WebhookCommand
from application.handlers.execute import CommandResult, add_webhook
from application.ports.webhooks import GeneratedSecret, WebhookHealth
from domain.errors import FieldError, ValidationFailed
from domain.file import has_control_characters
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WebhookFilter, url_error
from infrastructure.outbound import BadDestination, PrivateAddress, parse_destination
from interfaces.common.access import load_webhook, reject_batch_scoped_key, require
from interfaces.common.api_types import (
    PageResponse,
    RequestBody,
    SecretResponse,
    TestRequestedResponse,
    WebhookResponse,
)
from interfaces.common.forwarded import public_url
from interfaces.common.idempotency import command_context
from interfaces.common.operations import OPERATOR_SCOPES, Operation
from interfaces.common.problems import Problem
from interfaces.common.requests import (
    MAX_POSITION_WAIT,
    Query,
    json_body,
    least_position,
    not_reached,
    path_id,
)
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES, Services
from interfaces.rest.batch_creation import resolve_owner
from interfaces.rest.commands import CommandRoute, command_operations

MAX_OWNER_WEBHOOKS = 50
LIST_PARAMETERS = ("cursor", "limit", "min_position")

VISIBLE_TIMEOUT = 2.0
"""Seconds that the response to a command waits at most until lists show its effect."""

POLL_INTERVAL = 0.02
"""Seconds between two checks of the position that lists show."""


class NewWebhook(RequestBody, frozen=True, kw_only=True, omit_defaults=True):
    """A webhook to add; `owner` is for admins.

    With `label`, only events of batches with that label are delivered; with `on_request`, only
    events of batches whose `notify` names the webhook.
    """

    url: str
    events: tuple[str, ...] = ("batch.completed",)
    label: str | None = None
    on_request: bool = False
    description: str = ""
    owner: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class ChangedWebhook(RequestBody, frozen=True, kw_only=True, omit_defaults=True):
    """Fields of a webhook to change; the others stay as they are. A `label` of null removes it."""

    url: str | UnsetType = UNSET
    events: tuple[str, ...] | UnsetType = UNSET
    label: str | UnsetType | None = UNSET
    on_request: bool | UnsetType = UNSET
    description: str | UnsetType = UNSET


class DisableRequest(RequestBody, frozen=True, kw_only=True):
    """Reason for disabling a webhook, recorded in its history."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)] = "disabled on request"


async def create_webhook(request: web.Request) -> web.Response:
    """Add a webhook: 201 with its secret, which is shown only here."""
    principal = require(request, *OPERATOR_SCOPES)
    reject_batch_scoped_key(principal)
    Query(request, ())
    services = request.app[SERVICES]
    form = await json_body(request, msgspec.json.Decoder(NewWebhook))
    owner = resolve_owner(form.owner, principal)
    fields = msgspec.structs.asdict(form)
    if has_control_characters(fields.pop("owner") or ""):
        raise ValidationFailed(FieldError("owner", "must not hold control characters"))
    subscription = WebhookFilter(**fields)
    _require_reachable(subscription.url, services)
    if await services.webhooks.count(owner) >= MAX_OWNER_WEBHOOKS:
        detail = f"an owner has at most {MAX_OWNER_WEBHOOKS} webhooks: remove one first"
        raise Problem(409, "too_many_webhooks", detail)
    id = services.new_id()
    # The secret is stored before an event names it, so that the event never names a missing one.
    secret = await services.webhooks.make_secret(id)
    command = AddWebhook(id=id, owner=owner, subscription=subscription, secret=secret.id)
    added = await add_webhook(services.log, command, command_context(request))
    await _wait_until_listed(services, added.position, VISIBLE_TIMEOUT)
    webhook = webhook_response(added.aggregate, WebhookHealth(), services.now())
    response = SecretResponse(webhook=webhook, secret=secret.text, position=added.position)
    headers = {"Location": public_url(request, f"/v1/webhooks/{id}")}
    return json_response(response, status=201, position=added.position, headers=headers)


async def list_webhooks(request: web.Request) -> web.Response:
    """Respond with the webhooks of the owner, newest first; for an admin, of every owner."""
    principal = require(request, *OPERATOR_SCOPES)
    reject_batch_scoped_key(principal)
    services, query = request.app[SERVICES], Query(request, LIST_PARAMETERS)
    await wait_for_listed_position(request, query)
    page = await services.webhooks.all(
        owner=principal.visible_owner,
        cursor=query.text("cursor"),
        limit=query.integer("limit", 50, low=1, high=1000),
    )
    health = await services.webhooks.load_health([webhook.id for webhook in page.items])
    items = [
        webhook_response(webhook, health.get(webhook.id, WebhookHealth()), services.now())
        for webhook in page.items
    ]
    response = PageResponse(items=items, next=page.next, position=page.position)
    return json_response(response, position=page.position)


async def show_webhook(request: web.Request) -> web.Response:
    """Respond with a webhook as the log has it, including changes that lists do not show yet."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    return json_response(
        await _load_response(request, await load_webhook(request, path_id(request)))
    )


def webhook_response(webhook: Webhook, standing: WebhookHealth, at: datetime) -> WebhookResponse:
    """Return the webhook as clients see it at this moment."""
    chosen = webhook.subscription
    ends = [secret.until for secret in webhook.active_secrets(at) if secret.until is not None]
    return WebhookResponse(
        id=webhook.id,
        owner=webhook.owner,
        url=chosen.url,
        events=chosen.events,
        label=chosen.label,
        on_request=chosen.on_request,
        description=chosen.description,
        enabled=webhook.enabled,
        reason=webhook.reason,
        added_at=webhook.added_at,
        added_by=webhook.added_by,
        changed_at=webhook.changed_at,
        changed_by=webhook.changed_by,
        earlier_secrets_until=max(ends, default=None),
        version=webhook.version,
        **msgspec.structs.asdict(standing),
    )


async def wait_for_listed_position(request: web.Request, query: Query) -> None:
    """Wait until lists show `min_position`. Raises a 504 Problem after a few seconds."""
    services = request.app[SERVICES]
    least = await least_position(request, query)
    if least and not await _wait_until_listed(services, least, MAX_POSITION_WAIT):
        raise not_reached(least, await services.webhooks.position())


async def _wait_until_listed(services: Services, position: int, timeout: float) -> bool:
    """Wait until lists show this position, at most `timeout` seconds; return whether they do."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while await services.webhooks.position() < position:
        if loop.time() > end:
            return False
        await asyncio.sleep(POLL_INTERVAL)
    return True


async def _load_response(request: web.Request, webhook: Webhook) -> WebhookResponse:
    services = request.app[SERVICES]
    health = await services.webhooks.load_health([webhook.id])
    return webhook_response(webhook, health.get(webhook.id, WebhookHealth()), services.now())


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


async def _read_filter(request: web.Request, webhook: Webhook) -> WebhookFilter:
    """Return the subscription of the webhook with the changes of the body."""
    form = await json_body(request, msgspec.json.Decoder(ChangedWebhook))
    given = {
        name: value for name, value in msgspec.structs.asdict(form).items() if value is not UNSET
    }
    subscription = msgspec.structs.replace(webhook.subscription, **given)
    _require_reachable(subscription.url, request.app[SERVICES])
    return subscription


async def _make_secret(request: web.Request, webhook: Webhook) -> GeneratedSecret:
    return await request.app[SERVICES].webhooks.make_secret(webhook.id)


async def _respond_with_webhook(
    request: web.Request, _: object, result: CommandResult[Webhook]
) -> web.Response:
    """Respond with the webhook after the command, once lists show it too."""
    await _wait_until_listed(request.app[SERVICES], result.position, VISIBLE_TIMEOUT)
    return json_response(await _load_response(request, result.aggregate))


async def _respond_with_secret(
    request: web.Request, secret: GeneratedSecret, result: CommandResult[Webhook]
) -> web.Response:
    webhook = await _load_response(request, result.aggregate)
    response = SecretResponse(webhook=webhook, secret=secret.text, position=result.position)
    return json_response(response, position=result.position)


async def _respond_with_test(
    request: web.Request, _: None, result: CommandResult[Webhook]
) -> web.Response:
    response = TestRequestedResponse(webhook=result.aggregate.id, position=result.position)
    return json_response(response, status=202, position=result.position)


async def _respond_without_body(
    request: web.Request, _: None, result: CommandResult[Webhook]
) -> web.Response:
    await _wait_until_listed(request.app[SERVICES], result.position, VISIBLE_TIMEOUT)
    return web.Response(status=204)


COMMANDS = command_operations(
    CommandRoute[Webhook, WebhookFilter](
        method="PATCH",
        path="/v1/webhooks/{id}",
        summary="Change the URL or the events of a webhook",
        scopes=OPERATOR_SCOPES,
        load=load_webhook,
        body=ChangedWebhook,
        read_input=_read_filter,
        command=lambda webhook, new: WebhookCommand(
            webhook.id, partial(Webhook.change, subscription=new)
        ),
        respond=_respond_with_webhook,
        responses={200: WebhookResponse},
    ),
    CommandRoute[Webhook, None](
        method="DELETE",
        path="/v1/webhooks/{id}",
        summary="Remove a webhook, and the deliveries that wait for it",
        scopes=OPERATOR_SCOPES,
        load=load_webhook,
        command=lambda webhook, _: WebhookCommand(webhook.id, Webhook.remove),
        respond=_respond_without_body,
        responses={204: None},
    ),
    CommandRoute[Webhook, GeneratedSecret](
        path="/v1/webhooks/{id}/rotate",
        summary="Give a webhook a new secret, shown only in this response",
        scopes=OPERATOR_SCOPES,
        load=load_webhook,
        read_input=_make_secret,
        command=lambda webhook, secret: WebhookCommand(
            webhook.id, partial(Webhook.rotate, secret=secret.id)
        ),
        respond=_respond_with_secret,
        responses={200: SecretResponse},
    ),
    CommandRoute[Webhook, None](
        path="/v1/webhooks/{id}/test",
        summary="Send a webhook a test",
        scopes=OPERATOR_SCOPES,
        load=load_webhook,
        command=lambda webhook, _: WebhookCommand(webhook.id, Webhook.request_test),
        respond=_respond_with_test,
        responses={202: TestRequestedResponse},
    ),
    CommandRoute[Webhook, DisableRequest](
        path="/v1/webhooks/{id}/disable",
        summary="Hold back the deliveries of a webhook",
        scopes=OPERATOR_SCOPES,
        load=load_webhook,
        body=DisableRequest,
        default=DisableRequest(),
        command=lambda webhook, body: WebhookCommand(
            webhook.id, partial(Webhook.disable, reason=body.reason)
        ),
        respond=_respond_with_webhook,
        responses={200: WebhookResponse},
    ),
    CommandRoute[Webhook, None](
        path="/v1/webhooks/{id}/enable",
        summary="Deliver to a webhook again, beginning with what was held back",
        scopes=OPERATOR_SCOPES,
        load=load_webhook,
        command=lambda webhook, _: WebhookCommand(webhook.id, Webhook.enable),
        respond=_respond_with_webhook,
        responses={200: WebhookResponse},
    ),
)

OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/webhooks",
        handler=create_webhook,
        summary="Add a webhook; its secret is shown only in this response",
        body=NewWebhook,
        scopes=OPERATOR_SCOPES,
        responses={201: SecretResponse},
    ),
    Operation(
        method="GET",
        path="/v1/webhooks",
        handler=list_webhooks,
        summary="List webhooks, newest first",
        query=LIST_PARAMETERS,
        scopes=OPERATOR_SCOPES,
        responses={200: PageResponse[WebhookResponse]},
    ),
    Operation(
        method="GET",
        path="/v1/webhooks/{id}",
        handler=show_webhook,
        summary="Show a webhook, and the state of its deliveries",
        scopes=OPERATOR_SCOPES,
        responses={200: WebhookResponse},
    ),
    *COMMANDS,
)
