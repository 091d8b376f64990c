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


async def download_content(request: web.Request) -> web.StreamResponse:
    """Respond with the bytes of the upload; the link works once."""
    Query(request, ())
    step = await request.app[SERVICES].remote_steps.redeem_download_token(
        request.match_info["token"]
    )
    if step is None:
        raise Problem(410, "used_up", "the link was used, has expired, or is unknown")
    return await send_content(request, await _load_processing_upload(request, step))


async def record_report(request: web.Request) -> web.Response:
    """Record progress, a result or an error of the service: 204.

    A result or an error is final; later reports are refused.
    """
    Query(request, ())
    remote_steps, token = request.app[SERVICES].remote_steps, request.match_info["token"]
    step = await remote_steps.by_callback(token)
    if step is None:
        raise _attempt_over()
    await _load_processing_upload(request, step)
    reported = await json_body(request, _decoder)
    if reported.result is not None and len(msgspec.json.encode(reported.result)) > MAX_RESULT:
        raise invalid(FieldProblem("/result", f"must be at most {MAX_RESULT} bytes of JSON"))
    if not await remote_steps.record_report(step.id, reported):
        if await remote_steps.by_callback(token) is None:
            raise _attempt_over()
        raise Problem(409, "already_answered", "a result or an error was reported before")
    return web.Response(status=204)


async def _load_processing_upload(request: web.Request, step: RemoteStep) -> Upload:
    """Return the upload from the log. Raises a 410 Problem if the attempt is not current."""
    log = request.app[SERVICES].log
    log.forget(step.upload)  # another process may have appended: read the log
    upload = await log.upload(step.upload)
    if (upload.state, upload.attempt) != (UploadState.PROCESSING, step.attempt):
        raise _attempt_over()
    return upload


def _attempt_over() -> Problem:
    return Problem(410, "attempt_over", "the attempt has ended, or the link is unknown")


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/callbacks/{token}/content",
        handler=download_content,
        summary="The bytes that a service was asked to process, once",
        scopes=(),
        responses={200: bytes},
        media="application/octet-stream",
    ),
    Operation(
        method="POST",
        path="/v1/callbacks/{token}",
        handler=record_report,
        summary="What a service says of a step: progress, a result or an error",
        body=CallbackReport,
        scopes=(),
        responses={204: None},
    ),
)
