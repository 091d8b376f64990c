"""tus 1.0.0: what is offered, how far an upload is, its bytes, its end.

Source of the rules: https://tus.io/protocols/resumable-upload
"""

from __future__ import annotations

from typing import Any

from aiohttp import hdrs, web

from application.commands import CancelUpload
from application.ports.keys import Scope
from application.transfer.checksums import ALGORITHMS
from application.transfer.errors import NotIncoming, OffsetMismatch, TooLong
from application.transfer.transfers import Incoming
from domain.upload.aggregate import Upload
from domain.upload.state import GONE
from interfaces.rest.access import require, require_visible, upload_of
from interfaces.rest.params import id_in
from interfaces.rest.problems import Problem, bad_parameter
from interfaces.services import SERVICES
from interfaces.uploads.body import Body, require_plain
from interfaces.uploads.headers import only
from interfaces.uploads.positions import placed
from interfaces.uploads.refusals import gone
from interfaces.uploads.serving import TRANSFERS, speaker_of
from interfaces.uploads.tus import metadata
from interfaces.uploads.tus.concatenation import (
    concat_of,
    create_concatenated,
    require_growing,
)
from interfaces.uploads.tus.creation import create_upload
from interfaces.uploads.tus.expiring import expires, expires_as_recorded
from interfaces.uploads.tus.request import (
    CONCAT,
    CONTENT_TYPE,
    DEFER,
    EXTENSIONS,
    LENGTH,
    METADATA,
    OFFSET,
    OVERRIDE,
    RESUMABLE,
    VERSION,
    checksum_in,
    number_in,
    speaks_tus,
    tus_request,
)

__all__ = ["append", "create", "discover", "override", "speaks_tus", "tell_offset", "terminate"]


async def discover(request: web.Request) -> web.StreamResponse:
    """OPTIONS: what this server offers. Nobody has to be known for that."""
    headers = {
        RESUMABLE: VERSION,
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        "Tus-Max-Size": str(request.app[SERVICES].settings.max_file_size),
    }
    return web.Response(status=204, headers=headers)


async def create(request: web.Request) -> web.StreamResponse:
    """POST to a collection: an upload, a part of one, or parts made one.

    For `/v1/uploads`, and for `/v1/batches/{id}/uploads` where `speaks_tus(request)`.
    """
    if CONCAT in request.headers:
        return await create_concatenated(request)
    return await create_upload(request)


@tus_request
async def tell_offset(request: web.Request) -> web.StreamResponse:
    """HEAD of an upload: how far it is. A transfer that still runs is ended, and counted."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    id = id_in(request)
    await require_visible(request, id)
    request.app[SERVICES].log.forget(id)  # another process may have received more of it
    upload = await request.app[TRANSFERS].settle(id, speaker_of(request, principal))
    if upload.state in GONE:
        raise gone(upload.state)
    headers = {OFFSET: str(upload.received), hdrs.CACHE_CONTROL: "no-store"}
    headers |= {DEFER: "1"} if upload.size is None else {LENGTH: str(upload.size)}
    headers |= concat_of(upload)
    if echo := metadata.format(upload.metadata):
        headers[METADATA] = echo
    return web.Response(headers=headers | await expires_as_recorded(request, upload))


@tus_request
async def append(request: web.Request) -> web.StreamResponse:
    """PATCH of an upload: bytes from the offset on."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await upload_of(request, id_in(request))
    require_growing(upload)
    if request.content_type != CONTENT_TYPE:
        raise Problem(415, "content_type", f"send the bytes as {CONTENT_TYPE}")
    require_plain(request)
    offset = number_in(request, OFFSET)
    if offset is None:
        raise bad_parameter(OFFSET, "is missing")
    incoming = Incoming(
        upload=upload.id,
        offset=offset,
        length=request.content_length,
        size=number_in(request, LENGTH),
        checksum=checksum_in(request),
    )
    body, position = Body(request), 0
    try:
        decided = await request.app[TRANSFERS].receive(
            incoming, body, speaker_of(request, principal), body.here
        )
        upload, position = decided.aggregate, decided.position
    except NotIncoming as error:
        upload = await _of_finished(request, incoming, error)
    headers = {OFFSET: str(upload.received), **expires(request, upload)}
    return web.Response(status=204, headers=headers | await placed(request, position))


@tus_request
async def terminate(request: web.Request) -> web.StreamResponse:
    """DELETE of an upload: calls it off and frees its bytes."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await upload_of(request, id_in(request))
    if upload.state in GONE:
        raise gone(upload.state)
    command = CancelUpload(upload=upload.id, reason="terminated by its sender")
    transfers = request.app[TRANSFERS]
    context = transfers.context(speaker_of(request, principal))
    decided = await transfers.terminate(command, context)
    return web.Response(status=204, headers=await placed(request, decided.position))


async def override(request: web.Request) -> web.StreamResponse:
    """POST to an upload, from behind a proxy that lets nothing else through."""
    method = (only(request, OVERRIDE) or "").upper()
    handlers: dict[str, Any] = {"PATCH": append, "HEAD": tell_offset, "DELETE": terminate}
    if method not in handlers:
        raise web.HTTPMethodNotAllowed(hdrs.METH_POST, ["HEAD", "GET", "PATCH", "DELETE"])
    response: web.StreamResponse = await handlers[method](request)
    return response


async def _of_finished(request: web.Request, incoming: Incoming, error: NotIncoming) -> Upload:
    """A PATCH that repeats itself after the last byte is answered as it was the first time."""
    if error.state in GONE:
        raise error
    upload = await request.app[SERVICES].log.upload(incoming.upload)
    if incoming.offset != upload.received:
        raise OffsetMismatch(upload.received, incoming.offset)
    if incoming.length != 0:
        raise TooLong(upload.received)
    return upload
