"""What can be done to a webhook over HTTP: rotate its secret, test, disable and enable it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from application import commands
from application.handlers.execute import CommandResult, execute
from domain.webhook.aggregate import Webhook
from interfaces.common.access import load_webhook, require
from interfaces.common.api_types import SecretAnswer, TestRequestedAnswer, WebhookAnswer
from interfaces.common.requests import Query, json_body, path_id
from interfaces.common.routing import OPERATOR_SCOPES, Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import json_answer
from interfaces.rest.forms import Disabling
from interfaces.rest.idempotency import context_of
from interfaces.rest.webhooks.lists import seen, shown

_disabling = msgspec.json.Decoder(Disabling)


async def rotate(request: web.Request) -> web.Response:
    """A new secret; the earlier ones sign as well for another day."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    services = request.app[SERVICES]
    webhook = await load_webhook(request, path_id(request))
    secret = await services.webhooks.make_secret(webhook.id)
    command = commands.RotateSecret(webhook=webhook.id, secret=secret.id)
    rotated = await execute(services.log, command, context_of(request))
    shown_now = await shown(request, rotated.aggregate)
    answer = SecretAnswer(webhook=shown_now, secret=secret.text, position=rotated.position)
    return json_answer(answer, position=rotated.position)


async def test(request: web.Request) -> web.Response:
    """202: the delivery of that position tells what came of it."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    webhook = await load_webhook(request, path_id(request))
    command = commands.RequestTest(webhook=webhook.id)
    asked = await execute(request.app[SERVICES].log, command, context_of(request))
    answer = TestRequestedAnswer(webhook=webhook.id, position=asked.position)
    return json_answer(answer, status=202, position=asked.position)


async def disable(request: web.Request) -> web.Response:
    """What happens meanwhile waits."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    webhook = await load_webhook(request, path_id(request))
    form = await json_body(request, _disabling) if request.can_read_body else Disabling()
    command = commands.DisableWebhook(webhook=webhook.id, reason=form.reason)
    log = request.app[SERVICES].log
    return await _told(request, await execute(log, command, context_of(request)))


async def enable(request: web.Request) -> web.Response:
    """What waits is sent at once."""
    require(request, *OPERATOR_SCOPES)
    Query(request, ())
    command = commands.EnableWebhook(webhook=(await load_webhook(request, path_id(request))).id)
    log = request.app[SERVICES].log
    return await _told(request, await execute(log, command, context_of(request)))


async def _told(request: web.Request, decided: CommandResult[Webhook]) -> web.Response:
    """The webhook after the command, once lists show it too."""
    await seen(request.app[SERVICES], decided.position)
    return json_answer(await shown(request, decided.aggregate))


def _operation(
    name: str,
    handler: Callable[[web.Request], Awaitable[web.Response]],
    summary: str,
    status: int,
    answer: Any,
    body: Any = None,
) -> Operation:
    return Operation(
        method="POST",
        path=f"/v1/webhooks/{{id}}/{name}",
        handler=handler,
        summary=summary,
        body=body,
        scopes=OPERATOR_SCOPES,
        answers={status: answer},
    )


OPERATIONS = (
    _operation("rotate", rotate, "Give a webhook a new secret, shown this once", 200, SecretAnswer),
    _operation("test", test, "Send a webhook a test", 202, TestRequestedAnswer),
    _operation("disable", disable, "Stop telling a webhook", 200, WebhookAnswer, Disabling),
    _operation("enable", enable, "Tell a webhook again, at once what waits", 200, WebhookAnswer),
)
