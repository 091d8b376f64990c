"""What people change about work under way: retry a batch, its priority, release from quarantine."""

from __future__ import annotations

import msgspec
from aiohttp import web

from application.commands import PrioritizeBatch, ReleaseUpload, RetryBatch
from application.handlers.execute import CommandContext, execute
from application.ports.event_log import EventLog
from domain.batch.state import BatchState
from domain.upload.state import UploadState
from interfaces.common.access import load_batch, load_upload, require
from interfaces.common.api_types import CommandAnswer
from interfaces.common.requests import json_body, path_id
from interfaces.common.routing import OPERATOR_SCOPES, Operation
from interfaces.rest import batches, uploads
from interfaces.rest.forms import Priority, Release

_priority = msgspec.json.Decoder(Priority)
_release = msgspec.json.Decoder(Release)


async def retry(request: web.Request) -> web.Response:
    """Asks for every failed upload of a batch to be processed again, whatever their number."""
    require(request, *OPERATOR_SCOPES)
    batch = await load_batch(request, path_id(request))
    state = BatchState.OPEN if batch.state is BatchState.OPEN else BatchState.SEALED
    predicted = CommandAnswer(id=batch.id, state=state)

    async def act(log: EventLog, context: CommandContext) -> int:
        return (await execute(log, RetryBatch(batch=batch.id), context)).position

    return await batches.commanded(request, predicted, act)


async def prioritize(request: web.Request) -> web.Response:
    """Moves a batch before or behind the others of its owner."""
    require(request, *OPERATOR_SCOPES)
    batch = await load_batch(request, path_id(request))
    priority = (await json_body(request, _priority)).priority
    predicted = CommandAnswer(id=batch.id, priority=priority)

    async def act(log: EventLog, context: CommandContext) -> int:
        command = PrioritizeBatch(batch=predicted.id, priority=priority)
        return (await execute(log, command, context)).position

    return await batches.commanded(request, predicted, act, priority)


async def release(request: web.Request) -> web.Response:
    """Overrules the step that put a file into quarantine: the upload is completed."""
    require(request, *OPERATOR_SCOPES)
    upload = await load_upload(request, path_id(request))
    reason = (await json_body(request, _release)).reason
    predicted = CommandAnswer(id=upload.id, state=UploadState.COMPLETED)

    async def act(log: EventLog, context: CommandContext) -> int:
        command = ReleaseUpload(upload=predicted.id, reason=reason)
        return (await execute(log, command, context)).position

    return await uploads.commanded(request, predicted, act, reason)


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/batches/{id}/retry",
        handler=retry,
        summary="Process every failed upload of a batch again",
        scopes=OPERATOR_SCOPES,
        answers={202: CommandAnswer},
        repeatable=True,
    ),
    Operation(
        method="POST",
        path="/v1/batches/{id}/priority",
        handler=prioritize,
        summary="Change the priority of a batch",
        body=Priority,
        scopes=OPERATOR_SCOPES,
        answers={202: CommandAnswer},
        repeatable=True,
    ),
    Operation(
        method="POST",
        path="/v1/uploads/{id}/release",
        handler=release,
        summary="Release an upload from quarantine",
        body=Release,
        scopes=OPERATOR_SCOPES,
        answers={202: CommandAnswer},
        repeatable=True,
    ),
)
