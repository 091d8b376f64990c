"""Batches over HTTP: start, list, show, and the commands seal, pause, resume and cancel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from application.commands import CancelBatch, PauseBatch, ResumeBatch, SealBatch
from application.handlers.execute import CommandContext, execute
from application.ports.event_log import EventLog
from application.views import BatchView, batch_at
from domain.batch.state import BatchState
from interfaces.common.access import (
    load_batch,
    principal_of,
    reject_batch_scoped_key,
    require,
    require_owned,
    require_visible_stream,
)
from interfaces.common.api_types import CommandAnswer, PageAnswer
from interfaces.common.requests import Query, json_body, path_id, wait_for_min_position
from interfaces.common.routing import OPERATOR_SCOPES, UPLOAD_SCOPES, Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import POSITION, json_answer
from interfaces.rest.forms import Cancellation
from interfaces.rest.idempotency import once

LIST = ("state", "label", "cursor", "limit", "min_position")
SHOW = ("at", "min_position")

_cancellation = msgspec.json.Decoder(Cancellation)


async def show(request: web.Request) -> web.Response:
    """One batch, now or as of a position or time; with an ETag, so that asking again is cheap."""
    principal, id = principal_of(request), path_id(request)
    services, query = request.app[SERVICES], Query(request, SHOW)
    require_owned(principal, owner=principal.owner, batch=id)
    position, at = await wait_for_min_position(request, query), query.moment("at")
    if at is None:
        view = await services.queries.batch(id, owner=principal.visible_owner)
    else:
        await require_visible_stream(request, id)
        now = services.now()
        view = await batch_at(services.log, id, at, owner=principal.visible_owner, now=now)
    etag = f'W/"{view.version}-{view.position}-{view.activity}"'  # time alone changes what it does
    if etag in (tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")):
        return web.Response(status=304, headers={"ETag": etag, POSITION: str(position)})
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    return json_answer(view, position=position, headers=headers)


async def listing(request: web.Request) -> web.Response:
    """The batches of the owner, newest first; an admin sees those of every owner."""
    principal, query = principal_of(request), Query(request, LIST)
    reject_batch_scoped_key(principal)
    await wait_for_min_position(request, query)
    page = await request.app[SERVICES].queries.batches(
        owner=principal.visible_owner,
        state=query.choice("state", BatchState),
        label=query.text("label"),
        cursor=query.text("cursor"),
        limit=query.integer("limit", 50, low=1, high=1000),
    )
    answer = PageAnswer(items=page.items, next=page.next, position=page.position)
    return json_answer(answer, position=page.position)


async def seal(request: web.Request) -> web.Response:
    require(request, *UPLOAD_SCOPES)
    predicted = CommandAnswer(id=path_id(request), state="sealed")

    async def act(log: EventLog, context: CommandContext) -> int:
        return (await execute(log, SealBatch(batch=predicted.id), context)).position

    return await commanded(request, predicted, act)


async def pause(request: web.Request) -> web.Response:
    require(request, *OPERATOR_SCOPES)
    predicted = CommandAnswer(id=path_id(request), paused=True)

    async def act(log: EventLog, context: CommandContext) -> int:
        return (await execute(log, PauseBatch(batch=predicted.id), context)).position

    return await commanded(request, predicted, act)


async def resume(request: web.Request) -> web.Response:
    require(request, *OPERATOR_SCOPES)
    predicted = CommandAnswer(id=path_id(request), paused=False)

    async def act(log: EventLog, context: CommandContext) -> int:
        return (await execute(log, ResumeBatch(batch=predicted.id), context)).position

    return await commanded(request, predicted, act)


async def cancel(request: web.Request) -> web.Response:
    require(request, *OPERATOR_SCOPES)
    reason = await reason_in(request)
    predicted = CommandAnswer(id=path_id(request), state="cancelling")

    async def act(log: EventLog, context: CommandContext) -> int:
        command = CancelBatch(batch=predicted.id, reason=reason)
        return (await execute(log, command, context)).position

    return await commanded(request, predicted, act, reason)


async def reason_in(request: web.Request) -> str:
    """The reason in the body; a body is not needed."""
    if not request.can_read_body:
        return Cancellation().reason
    return (await json_body(request, _cancellation)).reason


async def commanded(
    request: web.Request,
    predicted: CommandAnswer,
    act: Callable[[EventLog, CommandContext], Awaitable[int]],
    *parts: object,
) -> web.Response:
    """Acts once on what the requester may touch, and answers what that leads to."""
    Query(request, ())
    log = request.app[SERVICES].log
    owner = (await load_batch(request, predicted.id)).owner
    answer = await once(request, owner, predicted, parts, lambda context: act(log, context))
    return json_answer(answer, status=202, position=answer.position)


def _command(name: str, handler: Callable[[web.Request], Awaitable[web.Response]]) -> Operation:
    return Operation(
        method="POST",
        path=f"/v1/batches/{{id}}/{name}",
        handler=handler,
        summary=f"{name.capitalize()} a batch",
        body=Cancellation if name == "cancel" else None,
        scopes=UPLOAD_SCOPES if name == "seal" else OPERATOR_SCOPES,
        answers={202: CommandAnswer},
        repeatable=True,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/batches",
        handler=listing,
        summary="List batches, newest first",
        query=LIST,
        answers={200: PageAnswer[BatchView]},
    ),
    Operation(
        method="GET",
        path="/v1/batches/{id}",
        handler=show,
        summary="Show a batch, now or as of a position or time",
        query=SHOW,
        answers={200: BatchView, 304: None},
    ),
    _command("seal", seal),
    _command("pause", pause),
    _command("resume", resume),
    _command("cancel", cancel),
)
