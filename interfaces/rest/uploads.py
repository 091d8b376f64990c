"""Uploads over HTTP: list, show, their attempts, cancel and retry. Bytes have a protocol each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from application.commands import CancelUpload, RetryUpload
from application.handlers.execute import CommandContext, execute
from application.ports.event_log import EventLog
from application.transfers.errors import TransferInterrupted
from application.views import AttemptView, upload_at
from domain.upload.state import UploadState
from interfaces.common.access import (
    load_upload,
    principal_of,
    require,
    require_owned,
    require_visible_stream,
)
from interfaces.common.api_types import CommandAnswer, PageAnswer, PublicUpload, public
from interfaces.common.requests import MAX_CURSOR, Query, path_id, wait_for_min_position
from interfaces.common.routing import OPERATOR_SCOPES, UPLOAD_SCOPES, Operation
from interfaces.common.services import SERVICES
from interfaces.rest.answers import json_answer
from interfaces.rest.batches import SHOW, reason_in
from interfaces.rest.forms import Cancellation
from interfaces.rest.idempotency import once
from interfaces.uploads.setup import TRANSFERS, transfer_problem

LIST = ("state", "cursor", "limit", "min_position")
ATTEMPTS = ("cursor", "limit", "min_position")


async def listing(request: web.Request) -> web.Response:
    """The uploads of a batch in the order of their paths."""
    principal, query, batch = principal_of(request), Query(request, LIST), path_id(request)
    require_owned(principal, owner=principal.owner, batch=batch)
    await wait_for_min_position(request, query)
    page = await request.app[SERVICES].queries.uploads(
        batch,
        owner=principal.visible_owner,
        state=query.choice("state", UploadState),
        cursor=query.text("cursor", most=MAX_CURSOR),
        limit=query.integer("limit", 100, low=1, high=1000),
    )
    items = [public(upload) for upload in page.items]
    answer = PageAnswer(items=items, next=page.next, position=page.position)
    return json_answer(answer, position=page.position)


async def show(request: web.Request) -> web.Response:
    """One upload, now or as of a position or time."""
    principal, query, id = principal_of(request), Query(request, SHOW), path_id(request)
    services = request.app[SERVICES]
    position, at = await wait_for_min_position(request, query), query.moment("at")
    if at is None:
        view = await services.queries.upload(id, owner=principal.visible_owner)
    else:
        await require_visible_stream(request, id)
        view = await upload_at(services.log, id, at, owner=principal.visible_owner)
    require_owned(principal, owner=view.owner, batch=view.batch)
    return json_answer(public(view), position=position)


async def attempts(request: web.Request) -> web.Response:
    """Every attempt, first to last; the cursor is the number of the last one seen."""
    principal, query, id = principal_of(request), Query(request, ATTEMPTS), path_id(request)
    services = request.app[SERVICES]
    position = await wait_for_min_position(request, query)
    view = await services.queries.upload(id, owner=principal.visible_owner)
    require_owned(principal, owner=view.owner, batch=view.batch)
    after, limit = query.integer("cursor", 0), query.integer("limit", 100, low=1, high=1000)
    rows = [
        row
        for row in await services.queries.attempts(id, owner=principal.visible_owner)
        if row.number > after
    ]
    next = str(rows[limit - 1].number) if len(rows) > limit else None
    answer = PageAnswer(items=rows[:limit], next=next, position=position)
    return json_answer(answer, position=position)


async def cancel(request: web.Request) -> web.Response:
    """Calls an upload off, and frees its bytes."""
    require(request, *UPLOAD_SCOPES)
    reason = await reason_in(request)
    predicted = CommandAnswer(id=path_id(request), state=UploadState.CANCELLED)

    async def act(log: EventLog, context: CommandContext) -> int:
        command = CancelUpload(upload=predicted.id, reason=reason)
        try:
            return (await request.app[TRANSFERS].cancel(command, context)).position
        except TransferInterrupted as error:  # somebody newer wants the upload, or the server stops
            raise transfer_problem(error) from error

    return await commanded(request, predicted, act, reason)


async def retry(request: web.Request) -> web.Response:
    """Processes a failed upload again, with a new allowance of attempts."""
    require(request, *OPERATOR_SCOPES)
    predicted = CommandAnswer(id=path_id(request), state=UploadState.RECEIVED)

    async def act(log: EventLog, context: CommandContext) -> int:
        return (await execute(log, RetryUpload(upload=predicted.id), context)).position

    return await commanded(request, predicted, act)


async def commanded(
    request: web.Request,
    predicted: CommandAnswer,
    act: Callable[[EventLog, CommandContext], Awaitable[int]],
    *parts: object,
) -> web.Response:
    """Acts once on what the requester may touch, and answers what that leads to."""
    Query(request, ())
    log = request.app[SERVICES].log
    owner = (await load_upload(request, predicted.id)).owner
    answer = await once(request, owner, predicted, parts, lambda context: act(log, context))
    return json_answer(answer, status=202, position=answer.position)


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/batches/{id}/uploads",
        handler=listing,
        summary="List the uploads of a batch, by path",
        query=LIST,
        answers={200: PageAnswer[PublicUpload]},  # type: ignore[valid-type]
    ),
    Operation(
        method="GET",
        path="/v1/uploads/{id}",
        handler=show,
        summary="Show an upload, now or as of a position or time",
        query=SHOW,
        answers={200: PublicUpload},
    ),
    Operation(
        method="GET",
        path="/v1/uploads/{id}/attempts",
        handler=attempts,
        summary="List the attempts of an upload, first to last",
        query=ATTEMPTS,
        answers={200: PageAnswer[AttemptView]},
    ),
    Operation(
        method="POST",
        path="/v1/uploads/{id}/cancel",
        handler=cancel,
        summary="Cancel an upload",
        body=Cancellation,
        scopes=UPLOAD_SCOPES,
        answers={202: CommandAnswer},
        repeatable=True,
    ),
    Operation(
        method="POST",
        path="/v1/uploads/{id}/retry",
        handler=retry,
        summary="Process a failed upload again",
        scopes=OPERATOR_SCOPES,
        answers={202: CommandAnswer},
        repeatable=True,
    ),
)
