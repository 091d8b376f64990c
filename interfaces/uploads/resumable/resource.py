"""IETF resumable uploads: how far an upload is, its bytes, its end.

Source of the rules: draft-ietf-httpbis-resumable-upload, interop versions 5, 6 and 8.
"""

from __future__ import annotations

from typing import Any

from aiohttp import hdrs, web

from application.commands import CancelUpload
from application.ports.keys import Scope
from application.transfer.errors import NotIncoming, OffsetMismatch, TooLong
from application.transfer.transfers import Incoming
from domain.upload.state import GONE, INCOMING
from interfaces.rest.access import require, require_visible, upload_of
from interfaces.rest.params import id_in
from interfaces.rest.problems import Problem, bad_parameter
from interfaces.services import SERVICES
from interfaces.uploads.body import Body, require_plain
from interfaces.uploads.headers import only
from interfaces.uploads.positions import placed, with_position
from interfaces.uploads.resumable.answers import appended, stored
from interfaces.uploads.resumable.creation import (
    body_length,
    create,
    full_size,
    require_whole,
)
from interfaces.uploads.resumable.digests import CONTENT_DIGEST, digest_in
from interfaces.uploads.resumable.interim import progressing
from interfaces.uploads.resumable.problems import completed, inactive, inconsistent_length
from interfaces.uploads.resumable.request import (
    COMPLETE,
    LENGTH,
    LIMIT,
    OFFSET,
    PARTIAL,
    complete_in,
    completeness,
    either,
    ietf_request,
    interop_of,
    limits,
    offset_in,
    speaks_ietf,
)
from interfaces.uploads.serving import TRANSFERS, speaker_of
from interfaces.uploads.tus import resource as tus
from interfaces.uploads.tus.request import OVERRIDE

__all__ = [
    "append",
    "cancel",
    "create",
    "discover",
    "either",
    "override",
    "speaks_ietf",
    "tell_offset",
]


async def discover(request: web.Request) -> web.StreamResponse:
    """OPTIONS: what tus is told, and the limits that this protocol wants to see there."""
    response = await tus.discover(request)
    response.headers[LIMIT] = limits(request)
    return response


@ietf_request
async def tell_offset(request: web.Request) -> web.StreamResponse:
    """HEAD of an upload: how far it is. A transfer that still runs is ended, and counted."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    _require_bare(request)
    id = id_in(request)
    await require_visible(request, id)
    request.app[SERVICES].log.forget(id)  # another process may have received more of it
    upload = await request.app[TRANSFERS].settle(id, speaker_of(request, principal))
    if upload.state in GONE:
        raise inactive(upload.state)
    headers = {
        OFFSET: str(upload.received),
        COMPLETE: completeness(upload.state not in INCOMING),
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
    upload = await upload_of(request, id_in(request))
    _require_partial(request)
    require_plain(request)
    offset, complete = offset_in(request), complete_in(request) or False
    incoming = Incoming(
        upload=upload.id,
        offset=offset,
        length=body_length(request),
        size=full_size(request, offset),
        last=complete,
        checksum=digest_in(request, CONTENT_DIGEST),
    )
    if upload.state in INCOMING and upload.received == offset:
        _require_consistent(upload.size, incoming)
    body = Body(request)
    chunks = progressing(request, upload.id, body)
    try:
        decided = await request.app[TRANSFERS].receive(
            incoming, chunks, speaker_of(request, principal), body.here
        )
    except NotIncoming as error:
        return await _of_finished(request, incoming, error)
    except TooLong as error:
        if incoming.size is None and upload.size is None:
            raise
        raise inconsistent_length(str(error)) from error
    answer = (require_whole if complete else appended)(request, decided.aggregate)
    return await with_position(request, answer, decided.position)


@ietf_request
async def cancel(request: web.Request) -> web.StreamResponse:
    """DELETE of an upload: calls it off and frees its bytes."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    _require_bare(request)
    upload = await upload_of(request, id_in(request))
    if upload.state in GONE:
        raise inactive(upload.state)
    command = CancelUpload(upload=upload.id, reason="cancelled by its sender")
    transfers = request.app[TRANSFERS]
    context = transfers.context(speaker_of(request, principal))
    decided = await transfers.terminate(command, context)
    return web.Response(status=204, headers=await placed(request, decided.position))


async def override(request: web.Request) -> web.StreamResponse:
    """POST to an upload, from behind a proxy that lets nothing else through."""
    method = (only(request, OVERRIDE) or "").upper()
    handlers: dict[str, Any] = {"PATCH": append, "HEAD": tell_offset, "DELETE": cancel}
    if method not in handlers:
        raise web.HTTPMethodNotAllowed(hdrs.METH_POST, ["HEAD", "GET", "PATCH", "DELETE"])
    response: web.StreamResponse = await handlers[method](request)
    return response


async def _of_finished(
    request: web.Request, incoming: Incoming, error: NotIncoming
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
    return await with_position(request, stored(request, upload), 0)


def _require_consistent(known: int | None, incoming: Incoming) -> None:
    """Raises a 400 Problem for another size than the one that is on record."""
    if None not in (known, incoming.size) and known != incoming.size:
        raise inconsistent_length(f"{incoming.size} bytes now, {known} before")


def _require_bare(request: web.Request) -> None:
    """Raises a 400 Problem for headers that interop version 5 forbids here."""
    for header in (OFFSET, COMPLETE):
        if interop_of(request) == 5 and header in request.headers:
            raise bad_parameter(header, "must not be sent here")


def _require_partial(request: web.Request) -> None:
    """Raises a 415 Problem for another media type; clients of version 5 may send none."""
    if interop_of(request) != 5 and request.content_type != PARTIAL:
        headers = {"Accept-Patch": PARTIAL}
        raise Problem(415, "content_type", f"send the bytes as {PARTIAL}", headers=headers)
