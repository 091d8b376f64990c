"""Batches over HTTP: list, show, and the commands to a batch."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from aiohttp import web
from msgspec import Meta

from application.commands import BatchCommand
from application.views import BatchView, batch_at
from domain.batch.aggregate import Batch
from domain.batch.state import BatchState
from interfaces.common.access import (
    load_batch,
    principal_of,
    reject_batch_scoped_key,
    require_owned,
    require_visible_stream,
)
from interfaces.common.api_types import CancelRequest, CommandResponse, PageResponse, RequestBody
from interfaces.common.operations import OPERATOR_SCOPES, UPLOAD_SCOPES, Operation
from interfaces.common.requests import Query, path_id, wait_for_min_position
from interfaces.common.responses import POSITION, json_response
from interfaces.common.services import SERVICES
from interfaces.rest.commands import CommandRoute, command_operations

LIST_PARAMETERS = ("state", "label", "cursor", "limit", "min_position")
SHOW_PARAMETERS = ("at", "min_position")


class PriorityRequest(RequestBody, frozen=True, kw_only=True):
    """New priority of a batch: among the batches of an owner, higher ones go first."""

    priority: Annotated[int, Meta(ge=-100, le=100)]


class RenameRequest(RequestBody, frozen=True, kw_only=True):
    """New label of a batch; the rules are those of the label of `POST /v1/batches`."""

    label: str


async def list_batches(request: web.Request) -> web.Response:
    """Respond with the batches of the owner, newest first; for an admin, of every owner."""
    principal, query = principal_of(request), Query(request, LIST_PARAMETERS)
    reject_batch_scoped_key(principal)
    await wait_for_min_position(request, query)
    page = await request.app[SERVICES].queries.batches(
        owner=principal.visible_owner,
        state=query.choice("state", BatchState),
        label=query.text("label"),
        cursor=query.text("cursor"),
        limit=query.integer("limit", 50, low=1, high=1000),
    )
    response = PageResponse(items=page.items, next=page.next, position=page.position)
    return json_response(response, position=page.position)


async def show_batch(request: web.Request) -> web.Response:
    """Respond with a batch, now or as of a position or time, with an ETag for conditional GET."""
    principal, id = principal_of(request), path_id(request)
    services, query = request.app[SERVICES], Query(request, SHOW_PARAMETERS)
    require_owned(principal, owner=principal.owner, batch=id)
    position, at = await wait_for_min_position(request, query), query.position_or_time("at")
    if at is None:
        view = await services.queries.batch(id, owner=principal.visible_owner)
    else:
        await require_visible_stream(request, id)
        now = services.now()
        view = await batch_at(services.log, id, at, owner=principal.visible_owner, now=now)
    etag = f'W/"{view.version}-{view.position}-{view.activity}"'  # time alone changes the activity
    if etag in (tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")):
        return web.Response(status=304, headers={"ETag": etag, POSITION: str(position)})
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    return json_response(view, position=position, headers=headers)


def _state_after_retry(batch: Batch) -> BatchState:
    return BatchState.OPEN if batch.state is BatchState.OPEN else BatchState.SEALED


_batch_command = partial(CommandRoute[Batch, None], load=load_batch)

COMMANDS = command_operations(
    _batch_command(
        path="/v1/batches/{id}/seal",
        summary="Seal a batch",
        scopes=UPLOAD_SCOPES,
        command=lambda batch, _: BatchCommand(batch.id, Batch.seal),
        response=lambda batch, _: CommandResponse(id=batch.id, state="sealed"),
    ),
    _batch_command(
        path="/v1/batches/{id}/pause",
        summary="Pause a batch",
        scopes=OPERATOR_SCOPES,
        command=lambda batch, _: BatchCommand(batch.id, Batch.pause),
        response=lambda batch, _: CommandResponse(id=batch.id, paused=True),
    ),
    _batch_command(
        path="/v1/batches/{id}/resume",
        summary="Resume a batch",
        scopes=OPERATOR_SCOPES,
        command=lambda batch, _: BatchCommand(batch.id, Batch.resume),
        response=lambda batch, _: CommandResponse(id=batch.id, paused=False),
    ),
    CommandRoute[Batch, CancelRequest](
        path="/v1/batches/{id}/cancel",
        summary="Cancel a batch",
        scopes=OPERATOR_SCOPES,
        load=load_batch,
        body=CancelRequest,
        default=CancelRequest(),
        command=lambda batch, body: BatchCommand(
            batch.id, partial(Batch.cancel, reason=body.reason)
        ),
        response=lambda batch, _: CommandResponse(id=batch.id, state="cancelling"),
    ),
    _batch_command(
        path="/v1/batches/{id}/retry",
        summary="Process every failed upload of a batch again",
        scopes=OPERATOR_SCOPES,
        command=lambda batch, _: BatchCommand(batch.id, Batch.request_retry),
        response=lambda batch, _: CommandResponse(id=batch.id, state=_state_after_retry(batch)),
    ),
    CommandRoute[Batch, PriorityRequest](
        path="/v1/batches/{id}/priority",
        summary="Change the priority of a batch",
        scopes=OPERATOR_SCOPES,
        load=load_batch,
        body=PriorityRequest,
        command=lambda batch, body: BatchCommand(
            batch.id, partial(Batch.prioritize, priority=body.priority)
        ),
        response=lambda batch, body: CommandResponse(id=batch.id, priority=body.priority),
    ),
    CommandRoute[Batch, RenameRequest](
        method="PATCH",
        path="/v1/batches/{id}",
        summary="Rename a batch",
        scopes=OPERATOR_SCOPES,
        load=load_batch,
        body=RenameRequest,
        command=lambda batch, body: BatchCommand(batch.id, partial(Batch.rename, label=body.label)),
        response=lambda batch, _: CommandResponse(id=batch.id, state=batch.state),
    ),
)

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/batches",
        handler=list_batches,
        summary="List batches, newest first",
        query=LIST_PARAMETERS,
        responses={200: PageResponse[BatchView]},
    ),
    Operation(
        method="GET",
        path="/v1/batches/{id}",
        handler=show_batch,
        summary="Show a batch, now or as of a position or time",
        query=SHOW_PARAMETERS,
        responses={200: BatchView, 304: None},
    ),
    *COMMANDS,
)
