"""What clients of the IETF's resumable uploads are answered when all went well."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import hdrs, web

from application.commands import CancelUpload
from application.handlers.execute import CommandResult
from application.handlers.uploads import RegisteredUpload
from application.ports.auth import Scope
from application.transfers.errors import BodyTooLarge, NotAcceptingBytes, OffsetMismatch
from application.transfers.receiver import Checksum
from application.transfers.transfers import Actor, AppendRequest
from domain.upload.aggregate import Upload
from domain.upload.state import GONE, INCOMING
from interfaces.common.access import load_upload, require, require_visible_stream
from interfaces.common.body import Body, read_all, reject_content_encoding, single_header
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.requests import path_id
from interfaces.common.responses import json_response
from interfaces.common.services import SERVICES
from interfaces.uploads import tus as tus
from interfaces.uploads.ietf_protocol import (
    COMPLETE,
    CONTENT_DIGEST,
    LENGTH,
    LIMIT,
    OFFSET,
    PARTIAL,
    REPR_DIGEST,
    completed,
    declaration,
    declaration_checksum,
    dispatch_protocol,
    ietf_problem,
    ietf_request,
    inactive,
    inconsistent_length,
    interop_version,
    is_ietf,
    limits,
    parse_digest,
    parse_length,
    parse_offset,
    parse_upload_complete,
    send_104,
    unsupported_digest,
    upload_complete_header,
    with_104_progress,
)
from interfaces.uploads.setup import (
    CREATOR,
    TRANSFERS,
    actor_of,
    position_header,
    set_position_header,
    upload_url,
)
from interfaces.uploads.tus import SMALL, upload_target
from interfaces.uploads.tus_protocol import OVERRIDE


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is all here, durable and on record."""

    id: UUID
    batch: UUID
    path: str
    size: int
    state: str


def completed_response(request: web.Request, upload: Upload) -> web.Response:
    """The final response. It follows from the upload alone, so that it can be given again."""
    answer = StoredAnswer(
        id=upload.id,
        batch=upload.batch,
        path=upload.path,
        size=upload.received,
        state=upload.state,
    )
    headers = {
        hdrs.LOCATION: upload_url(request, upload.id),
        COMPLETE: "?1",
        OFFSET: str(upload.received),
    }
    return json_response(answer, status=201, headers=headers)


def created_response(request: web.Request, upload: Upload) -> web.Response:
    """An upload was created, and its file is not complete."""
    headers = {hdrs.LOCATION: upload_url(request, upload.id), **_so_far(request, upload)}
    return web.Response(status=201, headers=headers)


def appended_response(request: web.Request, upload: Upload) -> web.Response:
    """Bytes were added, and the client says that there are more."""
    status = 201 if interop_version(request) == 5 else 204
    return web.Response(status=status, headers=_so_far(request, upload))


def _so_far(request: web.Request, upload: Upload) -> dict[str, str]:
    return {COMPLETE: "?0", OFFSET: str(upload.received), LIMIT: limits(request)}


# IETF resumable uploads, the beginning: upload creation, whole or in part.


@ietf_request
async def create(request: web.Request) -> web.StreamResponse:
    """POST to a collection: creates an upload, and takes the bytes that come along."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    reject_content_encoding(request)
    place = await upload_target(request, principal.owner)
    complete = parse_upload_complete(request)
    if complete is None:
        raise bad_parameter(COMPLETE, "must be ?0 or ?1")
    incoming = partial(AppendRequest, offset=0, length=body_length(request), last=complete)
    size, checksum, representation = full_size(request, 0), *_digests(request, complete)
    file = declaration(request, size, representation)
    actor, creator = actor_of(request, principal), request.app[CREATOR]
    if complete and size is not None and size <= SMALL and request.content.is_eof():
        read = partial(_arrived, request, checksum)
        arrived = await creator.create_with_content(place, file, read, actor)
        await send_104(request, upload_url(request, arrived.upload.id))
        return await set_position_header(
            request, completed_response(request, arrived.upload), arrived.position
        )
    registered = await creator.register(place, file, actor)
    id = registered.upload.id
    await send_104(request, upload_url(request, id))
    try:
        decided = await _first_bytes(
            request, registered, incoming(upload=id, size=size, checksum=checksum), actor
        )
        answer = (require_whole if complete else created_response)(request, decided.aggregate)
        return await set_position_header(request, answer, decided.position)
    except Exception as error:
        problem = ietf_problem(error)
        problem.headers[hdrs.LOCATION] = upload_url(request, id)
        raise problem from error


def body_length(request: web.Request) -> int | None:
    """How many bytes the body has; None where that shows only at its end."""
    return request.content_length if request.body_exists else 0


def full_size(request: web.Request, offset: int) -> int | None:
    """The size of the file, said or implied. Raises a 400 Problem where the two differ."""
    said, length = parse_length(request), body_length(request)
    implied = offset + length if parse_upload_complete(request) and length is not None else None
    if None not in (said, implied) and said != implied:
        raise inconsistent_length(f"Upload-Length is {said}, the body ends at {implied}")
    if said is not None and length is not None and offset + length > said:
        raise inconsistent_length(f"the body ends behind byte {said}, its Upload-Length")
    return implied if said is None else said


def require_whole(request: web.Request, upload: Upload) -> web.Response:
    """The final response; a 400 Problem where the body ended before the file did."""
    if upload.state in INCOMING:
        problem = inconsistent_length(f"{upload.received} of {upload.size} bytes are here")
        problem.headers["Upload-Offset"] = str(upload.received)
        raise problem
    return completed_response(request, upload)


def _digests(request: web.Request, complete: bool) -> tuple[Checksum | None, Checksum | None]:
    """What this body is held against, and what the whole file is."""
    content, whole = parse_digest(request, CONTENT_DIGEST), parse_digest(request, REPR_DIGEST)
    if whole is not None and not complete and declaration_checksum(whole) is None:
        raise unsupported_digest("sha-256 of a file that comes in several requests")
    return content or (whole if complete else None), whole


async def _arrived(request: web.Request, checksum: Checksum | None) -> bytes:
    """A body that came along with the headers. Raises ChecksumMismatch, SenderGone, Stalled."""
    content = await read_all(request)
    if checksum is not None:
        checksum.verify(content)
    return content


async def _first_bytes(
    request: web.Request, registered: RegisteredUpload, incoming: AppendRequest, actor: Actor
) -> CommandResult[Upload]:
    """The upload with the body; one that the batch had all of already stays as it is."""
    upload, unchanged = registered.upload, CommandResult(registered.upload, registered.position)
    if upload.state not in INCOMING:
        return unchanged
    if upload.received:
        raise OffsetMismatch(upload.received, 0)
    if incoming.length == 0 and not incoming.last:
        return unchanged
    body = Body(request)
    chunks = with_104_progress(request, upload.id, body)
    try:
        return await request.app[TRANSFERS].receive(incoming, chunks, actor, body.here)
    except BodyTooLarge as error:
        if incoming.size is None:
            raise
        raise inconsistent_length(str(error)) from error


# IETF resumable uploads: how far an upload is, its bytes, its end.
#
# Source of the rules: draft-ietf-httpbis-resumable-upload, interop versions 5, 6 and 8.

__all__ = [
    "append",
    "cancel",
    "create",
    "dispatch_protocol",
    "head",
    "is_ietf",
    "options",
    "override",
]


async def options(request: web.Request) -> web.StreamResponse:
    """OPTIONS: what tus is told, and the limits that this protocol wants to see there."""
    response = await tus.discover(request)
    response.headers[LIMIT] = limits(request)
    return response


@ietf_request
async def head(request: web.Request) -> web.StreamResponse:
    """HEAD of an upload: how far it is. A transfer that still runs is ended, and counted."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    _require_bare(request)
    id = path_id(request)
    await require_visible_stream(request, id)
    request.app[SERVICES].log.forget(id)  # another process may have received more of it
    upload = await request.app[TRANSFERS].current_upload(id, actor_of(request, principal))
    if upload.state in GONE:
        raise inactive(upload.state)
    headers = {
        OFFSET: str(upload.received),
        COMPLETE: upload_complete_header(upload.state not in INCOMING),
        LIMIT: limits(request, renewed=False),
        hdrs.CACHE_CONTROL: "no-store",
    }
    if upload.size is not None:
        headers[LENGTH] = str(upload.size)
    return web.Response(status=204, headers=headers)


@ietf_request
async def append(request: web.Request) -> web.StreamResponse:
    """PATCH of an upload: bytes from the offset on; with `Upload-Complete: ?1` the last ones."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await load_upload(request, path_id(request))
    _require_partial(request)
    reject_content_encoding(request)
    offset, complete = parse_offset(request), parse_upload_complete(request) or False
    incoming = AppendRequest(
        upload=upload.id,
        offset=offset,
        length=body_length(request),
        size=full_size(request, offset),
        last=complete,
        checksum=parse_digest(request, CONTENT_DIGEST),
    )
    if upload.state in INCOMING and upload.received == offset:
        _require_consistent(upload.size, incoming)
    body = Body(request)
    chunks = with_104_progress(request, upload.id, body)
    try:
        decided = await request.app[TRANSFERS].receive(
            incoming, chunks, actor_of(request, principal), body.here
        )
    except NotAcceptingBytes as error:
        return await _of_finished(request, incoming, error)
    except BodyTooLarge as error:
        if incoming.size is None and upload.size is None:
            raise
        raise inconsistent_length(str(error)) from error
    answer = (require_whole if complete else appended_response)(request, decided.aggregate)
    return await set_position_header(request, answer, decided.position)


@ietf_request
async def cancel(request: web.Request) -> web.StreamResponse:
    """DELETE of an upload: calls it off and frees its bytes."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    _require_bare(request)
    upload = await load_upload(request, path_id(request))
    if upload.state in GONE:
        raise inactive(upload.state)
    command = CancelUpload(upload=upload.id, reason="cancelled by its sender")
    transfers = request.app[TRANSFERS]
    context = transfers.context(actor_of(request, principal))
    decided = await transfers.terminate(command, context)
    return web.Response(status=204, headers=await position_header(request, decided.position))


async def override(request: web.Request) -> web.StreamResponse:
    """POST to an upload, from behind a proxy that lets nothing else through."""
    method = (single_header(request, OVERRIDE) or "").upper()
    handlers: dict[str, Any] = {"PATCH": append, "HEAD": head, "DELETE": cancel}
    if method not in handlers:
        raise web.HTTPMethodNotAllowed(hdrs.METH_POST, ["HEAD", "GET", "PATCH", "DELETE"])
    response: web.StreamResponse = await handlers[method](request)
    return response


async def _of_finished(
    request: web.Request, incoming: AppendRequest, error: NotAcceptingBytes
) -> web.StreamResponse:
    """An empty, completing append to a finished upload gets the final response again.

    Our uploads are complete with their last declared byte, whoever says so when: a client that
    says it afterwards, or did not hear the answer, must not be told that it failed.
    """
    if error.state in GONE:
        raise error
    upload = await request.app[SERVICES].log.upload(incoming.upload)
    if incoming.offset != upload.received:
        raise OffsetMismatch(upload.received, incoming.offset)
    if not incoming.last or incoming.length != 0:
        raise completed(upload.received)
    return await set_position_header(request, completed_response(request, upload), 0)


def _require_consistent(known: int | None, incoming: AppendRequest) -> None:
    """Raises a 400 Problem for another size than the one that is on record."""
    if None not in (known, incoming.size) and known != incoming.size:
        raise inconsistent_length(f"{incoming.size} bytes now, {known} before")


def _require_bare(request: web.Request) -> None:
    """Raises a 400 Problem for headers that interop version 5 forbids here."""
    for header in (OFFSET, COMPLETE):
        if interop_version(request) == 5 and header in request.headers:
            raise bad_parameter(header, "must not be sent here")


def _require_partial(request: web.Request) -> None:
    """Raises a 415 Problem for another media type; clients of version 5 may send none."""
    if interop_version(request) != 5 and request.content_type != PARTIAL:
        headers = {"Accept-Patch": PARTIAL}
        raise Problem(415, "content_type", f"send the bytes as {PARTIAL}", headers=headers)
