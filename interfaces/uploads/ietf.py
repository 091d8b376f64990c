"""IETF resumable uploads: handlers of creation, HEAD, PATCH and DELETE, and their responses.

Source of the rules: draft-ietf-httpbis-resumable-upload, interop versions 5, 6 and 8.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import hdrs, web

from application.commands import UploadCommand
from application.handlers.execute import CommandResult
from application.handlers.uploads import RegisteredUpload
from application.ports.auth import Scope
from application.transfers.errors import BodyTooLarge, NotAcceptingBytes, OffsetMismatch
from application.transfers.receiver import Checksum
from application.transfers.transfers import Actor, AppendRequest
from domain.upload.aggregate import Upload
from domain.upload.state import GONE, INCOMING
from interfaces.common.access import load_upload, require, require_visible_stream
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.requests import (
    Body,
    path_id,
    read_all,
    reject_content_encoding,
    single_header,
)
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES
from interfaces.uploads import ietf_protocol as protocol
from interfaces.uploads import tus
from interfaces.uploads.setup import (
    CREATOR,
    TRANSFERS,
    actor_of,
    position_header,
    set_position_header,
    upload_url,
)
from interfaces.uploads.tus import MAX_IN_MEMORY_BYTES, upload_target
from interfaces.uploads.tus_protocol import OVERRIDE


class StoredFileResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose bytes are all stored and recorded."""

    id: UUID
    batch: UUID
    path: str
    size: int
    state: str


def completed_response(request: web.Request, upload: Upload) -> web.Response:
    """Return the final response. It depends on the upload alone, so that it can be repeated."""
    response = StoredFileResponse(
        id=upload.id,
        batch=upload.batch,
        path=upload.path,
        size=upload.received,
        state=upload.state,
    )
    headers = {
        hdrs.LOCATION: upload_url(request, upload.id),
        protocol.COMPLETE: "?1",
        protocol.OFFSET: str(upload.received),
    }
    return json_response(response, status=201, headers=headers)


def created_response(request: web.Request, upload: Upload) -> web.Response:
    """Return the response to a creation whose file is not complete."""
    headers = {hdrs.LOCATION: upload_url(request, upload.id), **_progress_headers(request, upload)}
    return web.Response(status=201, headers=headers)


def appended_response(request: web.Request, upload: Upload) -> web.Response:
    """Return the response to an append after which more bytes follow."""
    status = 201 if protocol.interop_version(request) == 5 else 204
    return web.Response(status=status, headers=_progress_headers(request, upload))


def _progress_headers(request: web.Request, upload: Upload) -> dict[str, str]:
    return {
        protocol.COMPLETE: "?0",
        protocol.OFFSET: str(upload.received),
        protocol.LIMIT: protocol.limits(request),
    }


@protocol.ietf_request
async def create(request: web.Request) -> web.StreamResponse:
    """Create an upload, and receive the bytes in the same request: POST to a collection."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    reject_content_encoding(request)
    target = await upload_target(request, principal)
    complete = protocol.parse_upload_complete(request)
    if complete is None:
        raise bad_parameter(protocol.COMPLETE, "must be ?0 or ?1")
    append_request = partial(AppendRequest, offset=0, length=body_length(request), last=complete)
    size, checksum, representation = full_size(request, 0), *_digests(request, complete)
    file = protocol.declaration(request, size, representation)
    actor, creator = actor_of(request, principal), request.app[CREATOR]
    if complete and size is not None and size <= MAX_IN_MEMORY_BYTES and request.content.is_eof():
        read = partial(_read_body, request, checksum)
        created = await creator.create_with_content(target, file, read, actor)
        await protocol.send_104(request, upload_url(request, created.upload.id))
        return await set_position_header(
            request, completed_response(request, created.upload), created.position
        )
    registered = await creator.register(target, file, actor)
    id = registered.upload.id
    await protocol.send_104(request, upload_url(request, id))
    try:
        result = await _receive_initial_body(
            request, registered, append_request(upload=id, size=size, checksum=checksum), actor
        )
        response = (require_whole if complete else created_response)(request, result.aggregate)
        return await set_position_header(request, response, result.position)
    except Exception as error:
        problem = protocol.ietf_problem(error)
        problem.headers[hdrs.LOCATION] = upload_url(request, id)
        raise problem from error


def body_length(request: web.Request) -> int | None:
    """Return the size of the body in bytes; None if it is chunked."""
    return request.content_length if request.body_exists else 0


def full_size(request: web.Request, offset: int) -> int | None:
    """Return the file's size, declared or implied. Raises a 400 Problem if the two differ."""
    declared, length = protocol.parse_length(request), body_length(request)
    implied = (
        offset + length if protocol.parse_upload_complete(request) and length is not None else None
    )
    if None not in (declared, implied) and declared != implied:
        raise protocol.inconsistent_length(
            f"Upload-Length is {declared}, the body ends at {implied}"
        )
    if declared is not None and length is not None and offset + length > declared:
        raise protocol.inconsistent_length(
            f"the body ends behind byte {declared}, its Upload-Length"
        )
    return implied if declared is None else declared


def require_whole(request: web.Request, upload: Upload) -> web.Response:
    """Return the final response. Raises a 400 Problem if the body ended before the file did."""
    if upload.state in INCOMING:
        problem = protocol.inconsistent_length(f"{upload.received} of {upload.size} bytes are here")
        problem.headers["Upload-Offset"] = str(upload.received)
        raise problem
    return completed_response(request, upload)


def _digests(request: web.Request, complete: bool) -> tuple[Checksum | None, Checksum | None]:
    """Return the checksums of this body and of the whole file."""
    content, whole = (
        protocol.parse_digest(request, protocol.CONTENT_DIGEST),
        protocol.parse_digest(request, protocol.REPR_DIGEST),
    )
    if whole is not None and not complete and protocol.declaration_checksum(whole) is None:
        raise protocol.unsupported_digest("sha-256 of a file that comes in several requests")
    return content or (whole if complete else None), whole


async def _read_body(request: web.Request, checksum: Checksum | None) -> bytes:
    """Read a body that arrived with the head. Raises BodyChecksumMismatch and TransferAborted."""
    content = await read_all(request)
    if checksum is not None:
        checksum.verify(content)
    return content


async def _receive_initial_body(
    request: web.Request, registered: RegisteredUpload, append_request: AppendRequest, actor: Actor
) -> CommandResult[Upload]:
    """Receive the body of a creation; an upload that was complete before stays unchanged."""
    upload, unchanged = registered.upload, CommandResult(registered.upload, registered.position)
    if upload.state not in INCOMING:
        return unchanged
    if upload.received:
        raise OffsetMismatch(upload.received, 0)
    if append_request.length == 0 and not append_request.last:
        return unchanged
    body = Body(request)
    chunks = protocol.with_104_progress(request, upload.id, body)
    try:
        return await request.app[TRANSFERS].receive(
            append_request, chunks, actor, body.read_buffered
        )
    except BodyTooLarge as error:
        if append_request.size is None:
            raise
        raise protocol.inconsistent_length(str(error)) from error


async def options(request: web.Request) -> web.StreamResponse:
    """Respond to OPTIONS with the headers of tus and the limits of this protocol."""
    response = await tus.discover(request)
    response.headers[protocol.LIMIT] = protocol.limits(request)
    return response


@protocol.ietf_request
async def head(request: web.Request) -> web.StreamResponse:
    """Respond to HEAD with the upload's offset; preempts a running transfer to know it."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    _reject_progress_headers(request)
    id = path_id(request)
    await require_visible_stream(request, id)
    request.app[SERVICES].log.forget(id)  # another process may have received more of it
    upload = await request.app[TRANSFERS].current_upload(id, actor_of(request, principal))
    if upload.state in GONE:
        raise protocol.inactive(upload.state)
    headers = {
        protocol.OFFSET: str(upload.received),
        protocol.COMPLETE: protocol.upload_complete_header(upload.state not in INCOMING),
        protocol.LIMIT: protocol.limits(request, renewed=False),
        hdrs.CACHE_CONTROL: "no-store",
    }
    if upload.size is not None:
        headers[protocol.LENGTH] = str(upload.size)
    return web.Response(status=204, headers=headers)


@protocol.ietf_request
async def append(request: web.Request) -> web.StreamResponse:
    """Append the body at an offset: PATCH, with `Upload-Complete: ?1` for the last bytes."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await load_upload(request, path_id(request))
    _require_partial(request)
    reject_content_encoding(request)
    offset, complete = (
        protocol.parse_offset(request),
        protocol.parse_upload_complete(request) or False,
    )
    append_request = AppendRequest(
        upload=upload.id,
        offset=offset,
        length=body_length(request),
        size=full_size(request, offset),
        last=complete,
        checksum=protocol.parse_digest(request, protocol.CONTENT_DIGEST),
    )
    if upload.state in INCOMING and upload.received == offset:
        _require_consistent(upload.size, append_request)
    body = Body(request)
    chunks = protocol.with_104_progress(request, upload.id, body)
    try:
        result = await request.app[TRANSFERS].receive(
            append_request, chunks, actor_of(request, principal), body.read_buffered
        )
    except NotAcceptingBytes as error:
        return await _repeat_final_response(request, append_request, error)
    except BodyTooLarge as error:
        if append_request.size is None and upload.size is None:
            raise
        raise protocol.inconsistent_length(str(error)) from error
    response = (require_whole if complete else appended_response)(request, result.aggregate)
    return await set_position_header(request, response, result.position)


@protocol.ietf_request
async def cancel(request: web.Request) -> web.StreamResponse:
    """Cancel an upload and delete its bytes: DELETE."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    _reject_progress_headers(request)
    upload = await load_upload(request, path_id(request))
    if upload.state in GONE:
        raise protocol.inactive(upload.state)
    command = UploadCommand(upload.id, partial(Upload.cancel, reason="cancelled by its sender"))
    transfers = request.app[TRANSFERS]
    context = transfers.context(actor_of(request, principal))
    result = await transfers.terminate(command, context)
    return web.Response(status=204, headers=await position_header(request, result.position))


async def method_override(request: web.Request) -> web.StreamResponse:
    """Dispatch a POST with X-HTTP-Method-Override, for proxies that pass only GET and POST."""
    method = (single_header(request, OVERRIDE) or "").upper()
    handlers: dict[str, Any] = {"PATCH": append, "HEAD": head, "DELETE": cancel}
    if method not in handlers:
        raise web.HTTPMethodNotAllowed(hdrs.METH_POST, ["HEAD", "GET", "PATCH", "DELETE"])
    response: web.StreamResponse = await handlers[method](request)
    return response


async def _repeat_final_response(
    request: web.Request, append_request: AppendRequest, error: NotAcceptingBytes
) -> web.StreamResponse:
    """Repeat the final response for an empty, completing append to a finished upload.

    An upload is complete with its last declared byte. A client that completes it in a later
    request, or did not receive the response, must not get an error.
    """
    if error.state in GONE:
        raise error
    upload = await request.app[SERVICES].log.upload(append_request.upload)
    if append_request.offset != upload.received:
        raise OffsetMismatch(upload.received, append_request.offset)
    if not append_request.last or append_request.length != 0:
        raise protocol.completed(upload.received)
    return await set_position_header(request, completed_response(request, upload), 0)


def _require_consistent(known: int | None, append_request: AppendRequest) -> None:
    """Raise a 400 Problem for a size that differs from the recorded one."""
    if None not in (known, append_request.size) and known != append_request.size:
        raise protocol.inconsistent_length(f"{append_request.size} bytes now, {known} before")


def _reject_progress_headers(request: web.Request) -> None:
    """Raise a 400 Problem for headers that interop version 5 forbids here."""
    for header in (protocol.OFFSET, protocol.COMPLETE):
        if protocol.interop_version(request) == 5 and header in request.headers:
            raise bad_parameter(header, "must not be sent here")


def _require_partial(request: web.Request) -> None:
    """Raise a 415 Problem for another media type; clients of version 5 may send none."""
    if protocol.interop_version(request) != 5 and request.content_type != protocol.PARTIAL:
        headers = {"Accept-Patch": protocol.PARTIAL}
        raise Problem(415, "content_type", f"send the bytes as {protocol.PARTIAL}", headers=headers)
