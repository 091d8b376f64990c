"""Uploads over HTTP: list, show, attempts, and the commands to an upload.

Transfers of bytes are in `interfaces.uploads`, by protocol.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from aiohttp import web
from msgspec import Meta

from application.commands import UploadCommand, release_upload, retry_upload
from application.handlers.execute import CommandContext, CommandResult
from application.transfers.errors import TransferAborted
from application.views import AttemptView, upload_at
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState
from interfaces.common.access import (
    load_upload,
    principal_of,
    require_owned,
    require_visible_stream,
)
from interfaces.common.api_types import (
    CancelRequest,
    CommandResponse,
    PageResponse,
    PublicUpload,
    RequestBody,
    public_view,
)
from interfaces.common.operations import OPERATOR_SCOPES, UPLOAD_SCOPES, Operation
from interfaces.common.requests import MAX_CURSOR, Query, path_id, wait_for_min_position
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES
from interfaces.rest.batches import SHOW_PARAMETERS
from interfaces.rest.commands import CommandRoute, command_operations
from interfaces.uploads.setup import TRANSFERS, transfer_problem

LIST_PARAMETERS = ("state", "cursor", "limit", "min_position")
ATTEMPTS_PARAMETERS = ("cursor", "limit", "min_position")


class ReleaseRequest(RequestBody, frozen=True, kw_only=True):
    """Reason for releasing a quarantined upload, recorded in its history."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


async def list_uploads(request: web.Request) -> web.Response:
    """Respond with the uploads of a batch in the order of their paths."""
    principal, query = principal_of(request), Query(request, LIST_PARAMETERS)
    batch = path_id(request)
    require_owned(principal, owner=principal.owner, batch=batch)
    await wait_for_min_position(request, query)
    page = await request.app[SERVICES].queries.uploads(
        batch,
        owner=principal.visible_owner,
        state=query.choice("state", UploadState),
        cursor=query.text("cursor", most=MAX_CURSOR),
        limit=query.integer("limit", 100, low=1, high=1000),
    )
    items = [public_view(upload) for upload in page.items]
    response = PageResponse(items=items, next=page.next, position=page.position)
    return json_response(response, position=page.position)


async def show_upload(request: web.Request) -> web.Response:
    """Respond with an upload, now or as of a position or time."""
    principal, query = principal_of(request), Query(request, SHOW_PARAMETERS)
    services, id = request.app[SERVICES], path_id(request)
    position, at = await wait_for_min_position(request, query), query.position_or_time("at")
    if at is None:
        view = await services.queries.upload(id, owner=principal.visible_owner)
    else:
        await require_visible_stream(request, id)
        view = await upload_at(services.log, id, at, owner=principal.visible_owner)
    require_owned(principal, owner=view.owner, batch=view.batch)
    return json_response(public_view(view), position=position)


async def list_attempts(request: web.Request) -> web.Response:
    """Respond with the attempts, first to last; the cursor is the number of the last one seen."""
    principal, query = principal_of(request), Query(request, ATTEMPTS_PARAMETERS)
    services, id = request.app[SERVICES], path_id(request)
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
    response = PageResponse(items=rows[:limit], next=next, position=position)
    return json_response(response, position=position)


async def _cancel(
    request: web.Request, command: UploadCommand, context: CommandContext
) -> CommandResult[Upload]:
    """Stop a running transfer, cancel the upload, and free its bytes."""
    try:
        return await request.app[TRANSFERS].cancel(command, context)
    except (
        TransferAborted
    ) as error:  # a newer request has locked the upload, or the server is stopping
        raise transfer_problem(error) from error


COMMANDS = command_operations(
    CommandRoute[Upload, CancelRequest](
        path="/v1/uploads/{id}/cancel",
        summary="Cancel an upload",
        scopes=UPLOAD_SCOPES,
        load=load_upload,
        body=CancelRequest,
        default=CancelRequest(),
        command=lambda upload, body: UploadCommand(
            upload.id, partial(Upload.cancel, reason=body.reason)
        ),
        execute=_cancel,
        response=lambda upload, _: CommandResponse(id=upload.id, state=UploadState.CANCELLED),
    ),
    CommandRoute[Upload, None](
        path="/v1/uploads/{id}/retry",
        summary="Process a failed upload again",
        scopes=OPERATOR_SCOPES,
        load=load_upload,
        command=lambda upload, _: retry_upload(upload.id),
        response=lambda upload, _: CommandResponse(id=upload.id, state=UploadState.RECEIVED),
    ),
    CommandRoute[Upload, ReleaseRequest](
        path="/v1/uploads/{id}/release",
        summary="Release an upload from quarantine",
        scopes=OPERATOR_SCOPES,
        load=load_upload,
        body=ReleaseRequest,
        command=lambda upload, body: release_upload(upload.id, body.reason),
        response=lambda upload, _: CommandResponse(id=upload.id, state=UploadState.COMPLETED),
    ),
)

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/batches/{id}/uploads",
        handler=list_uploads,
        summary="List the uploads of a batch, by path",
        query=LIST_PARAMETERS,
        responses={200: PageResponse[PublicUpload]},  # type: ignore[valid-type]
    ),
    Operation(
        method="GET",
        path="/v1/uploads/{id}",
        handler=show_upload,
        summary="Show an upload, now or as of a position or time",
        query=SHOW_PARAMETERS,
        responses={200: PublicUpload},
    ),
    Operation(
        method="GET",
        path="/v1/uploads/{id}/attempts",
        handler=list_attempts,
        summary="List the attempts of an upload, first to last",
        query=ATTEMPTS_PARAMETERS,
        responses={200: PageResponse[AttemptView]},
    ),
    *COMMANDS,
)
