"""Routes for the services of `http` steps: read the bytes, report progress, a result or an error.

They take no API key: the last segment of the path is a secret for one attempt of one service.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from application.ports.jobs import CallbackReport, RemoteStep
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState
from interfaces.common.api_types import FieldProblem
from interfaces.common.operations import Operation
from interfaces.common.problems import Problem, invalid
from interfaces.common.requests import Query, json_body
from interfaces.common.services import SERVICES
from interfaces.uploads.content import send_content

MAX_RESULT = 64 * 1024  # bytes of JSON, as for every step

_decoder = msgspec.json.Decoder(CallbackReport)


async def content(request: web.Request) -> web.StreamResponse:
    """The bytes, once."""
    Query(request, ())
    step = await request.app[SERVICES].remote_steps.redeem_download_token(
        request.match_info["token"]
    )
    if step is None:
        raise Problem(410, "used_up", "this link was used, is too old, or never was")
    return await send_content(request, await _still_running(request, step))


async def report(request: web.Request) -> web.Response:
    """204 once it is recorded. A result or an error is the last word; progress may come before."""
    Query(request, ())
    remote_steps, token = request.app[SERVICES].remote_steps, request.match_info["token"]
    step = await remote_steps.by_callback(token)
    if step is None:
        raise _over()
    await _still_running(request, step)
    reported = await json_body(request, _decoder)
    if reported.result is not None and len(msgspec.json.encode(reported.result)) > MAX_RESULT:
        raise invalid(FieldProblem("/result", f"must be at most {MAX_RESULT} bytes of JSON"))
    if not await remote_steps.record_report(step.id, reported):
        if await remote_steps.by_callback(token) is None:
            raise _over()
        raise Problem(409, "already_answered", "the result or error was told before")
    return web.Response(status=204)


async def _still_running(request: web.Request, step: RemoteStep) -> Upload:
    """The upload, if the attempt that asked is the one that speaks for it, as the log has it."""
    log = request.app[SERVICES].log
    log.forget(step.upload)  # another process works on it
    upload = await log.upload(step.upload)
    if (upload.state, upload.attempt) != (UploadState.PROCESSING, step.attempt):
        raise _over()
    return upload


def _over() -> Problem:
    return Problem(410, "attempt_over", "the attempt that asked for this is over, or never was")


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/callbacks/{token}/content",
        handler=content,
        summary="The bytes that a service was asked to process, once",
        scopes=(),
        responses={200: bytes},
        media="application/octet-stream",
    ),
    Operation(
        method="POST",
        path="/v1/callbacks/{token}",
        handler=report,
        summary="What a service says of a step: progress, a result or an error",
        body=CallbackReport,
        scopes=(),
        responses={204: None},
    ),
)
