"""tus 1.0.0: creation, creation-with-upload, creation-defer-length, termination.

Source of the rules: https://tus.io/protocols/resumable-upload
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from application.commands import CancelUpload
from application.errors import NotFound
from application.handlers.registering import RegisteredUpload
from application.ports.keys import Scope
from application.transfer.arriving import Alone, Joining
from application.transfer.errors import NotIncoming, OffsetMismatch, TooLong
from application.transfer.transfers import Incoming, Speaker
from domain.upload.aggregate import Upload
from interfaces.rest.access import batch_of, require, require_unlimited, upload_of
from interfaces.rest.params import id_in
from interfaces.rest.problems import Problem, bad_parameter
from interfaces.services import SERVICES
from interfaces.uploads import metadata
from interfaces.uploads.body import HELD, chunks_of, require_plain, whole
from interfaces.uploads.refusals import GONE, gone, refusal_of
from interfaces.uploads.serving import ARRIVALS, TRANSFERS, speaker_of

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,creation-defer-length,termination"
CONTENT_TYPE = "application/offset+octet-stream"
SMALL = 256 * 1024  # bytes of a file that is held in memory, to be stored before it is recorded

RESUMABLE = "Tus-Resumable"
OFFSET = "Upload-Offset"
LENGTH = "Upload-Length"
DEFER = "Upload-Defer-Length"
METADATA = "Upload-Metadata"
OVERRIDE = "X-HTTP-Method-Override"


def speaks_tus(request: web.Request) -> bool:
    """Whether a request to a path that tus shares with our own API is one of tus."""
    return RESUMABLE in request.headers


def _tus(handler: Handler) -> Handler:
    """A handler of tus requests: checks the version, and tells errors so that clients act well."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            if request.headers.get(RESUMABLE) != VERSION:
                detail = f"this server speaks {RESUMABLE}: {VERSION}"
                raise Problem(412, "tus_version", detail, headers={"Tus-Version": VERSION})
            response = await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            response = refusal_of(error).response(request)
        response.headers[RESUMABLE] = VERSION
        if request.get(HELD):  # the body was never asked for: what follows would be taken for it
            response.force_close()
        return response

    return answer


async def discover(request: web.Request) -> web.StreamResponse:
    """OPTIONS: what this server offers. Nobody has to be known for that."""
    headers = {
        RESUMABLE: VERSION,
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(request.app[SERVICES].settings.max_file_size),
    }
    return web.Response(status=204, headers=headers)


@_tus
async def create(request: web.Request) -> web.StreamResponse:
    """POST to a collection: registers an upload, and takes the bytes that come along.

    For `/v1/uploads`, and for `/v1/batches/{id}/uploads` where `speaks_tus(request)`.
    """
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    speaker = speaker_of(request, principal)
    place = await _place(request, principal.owner)
    size = _declared_size(request)
    with_body = _has_body(request)
    said = metadata.parse(request.headers.get(METADATA, ""))
    default = str(request.app[SERVICES].new_id())
    file = metadata.declaration(said, size, default=default)
    arrivals = request.app[ARRIVALS]
    length = request.content_length
    if size is not None and (length or 0) > size:
        raise TooLong(size)
    if size is not None and size <= SMALL and (size == 0 or (with_body and length == size)):
        idle = request.app[TRANSFERS].limits.idle_timeout
        read = partial(whole, request, idle_timeout=idle)
        return _created((await arrivals.arrive(place, file, read, speaker)).upload)
    registered = await arrivals.announce(place, file, speaker)
    if with_body and registered.upload.received == 0:
        return _created(await _first_bytes(request, registered, speaker))
    return _created(registered.upload)


@_tus
async def tell_offset(request: web.Request) -> web.StreamResponse:
    """HEAD of an upload: how far it is. A transfer that still runs is ended, and counted."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    id = (await upload_of(request, id_in(request))).id
    upload = await request.app[TRANSFERS].settle(id, speaker_of(request, principal))
    if upload.state in GONE:
        raise gone(upload.state)
    headers = {OFFSET: str(upload.received), hdrs.CACHE_CONTROL: "no-store"}
    headers |= {DEFER: "1"} if upload.size is None else {LENGTH: str(upload.size)}
    if echo := metadata.format(upload.metadata):
        headers[METADATA] = echo
    return web.Response(headers=headers)


@_tus
async def append(request: web.Request) -> web.StreamResponse:
    """PATCH of an upload: bytes from the offset on."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    id = (await upload_of(request, id_in(request))).id
    if request.content_type != CONTENT_TYPE:
        raise Problem(415, "content_type", f"send the bytes as {CONTENT_TYPE}")
    require_plain(request)
    offset = _number(request, OFFSET)
    if offset is None:
        raise bad_parameter(OFFSET, "is missing")
    incoming = Incoming(
        upload=id, offset=offset, length=request.content_length, size=_number(request, LENGTH)
    )
    try:
        upload = await request.app[TRANSFERS].receive(
            incoming, chunks_of(request), speaker_of(request, principal)
        )
    except NotIncoming as error:
        upload = await _of_finished(request, incoming, error)
    return web.Response(status=204, headers={OFFSET: str(upload.received)})


@_tus
async def terminate(request: web.Request) -> web.StreamResponse:
    """DELETE of an upload: calls it off and frees its bytes."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await upload_of(request, id_in(request))
    if upload.state in GONE:
        raise gone(upload.state)
    command = CancelUpload(upload=upload.id, reason="terminated by its sender")
    await request.app[TRANSFERS].cancel(command, speaker_of(request, principal))
    return web.Response(status=204)


async def override(request: web.Request) -> web.StreamResponse:
    """POST to an upload, from behind a proxy that lets nothing else through."""
    method = request.headers.get(OVERRIDE, "").upper()
    handlers: dict[str, Any] = {"PATCH": append, "HEAD": tell_offset, "DELETE": terminate}
    if method not in handlers:
        raise web.HTTPMethodNotAllowed(hdrs.METH_POST, ["HEAD", "GET", "PATCH", "DELETE"])
    response: web.StreamResponse = await handlers[method](request)
    return response


async def _place(request: web.Request, owner: str) -> Alone | Joining:
    """The batch that the path names, or one of the file's own."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    if "id" in request.match_info:
        return Joining(batch=(await batch_of(request, id_in(request))).id)
    require_unlimited(principal)
    services = request.app[SERVICES]
    policy = services.settings.retry_policy
    return Alone(batch=services.new_id(), owner=owner, retry_policy=policy)


async def _first_bytes(
    request: web.Request, registered: RegisteredUpload, speaker: Speaker
) -> Upload:
    """The body of a creation. A client that learns of an error learns where to go on, too."""
    upload = registered.upload
    incoming = Incoming(upload=upload.id, offset=0, length=request.content_length)
    async with _located(upload.id):
        return await request.app[TRANSFERS].receive(incoming, chunks_of(request), speaker)


@asynccontextmanager
async def _located(id: UUID) -> AsyncIterator[None]:
    try:
        yield
    except (NotFound, ConnectionError):
        raise
    except Exception as error:
        problem = refusal_of(error)
        problem.headers[hdrs.LOCATION] = _location(id)
        raise problem from error


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


def _created(upload: Upload) -> web.Response:
    headers = {hdrs.LOCATION: _location(upload.id), OFFSET: str(upload.received)}
    return web.Response(status=201, headers=headers)


def _location(id: UUID) -> str:
    """Without a host: it holds behind any proxy."""
    return f"/v1/uploads/{id}"


def _declared_size(request: web.Request) -> int | None:
    """Upload-Length, or None where the client puts off saying it."""
    size, deferred = _number(request, LENGTH), request.headers.get(DEFER)
    if deferred not in (None, "1"):
        raise bad_parameter(DEFER, "must be 1")
    if (size is None) == (deferred is None):
        raise bad_parameter(LENGTH, f"must be given, or else {DEFER}: 1")
    return size


def _has_body(request: web.Request) -> bool:
    if not request.body_exists or request.content_length == 0:
        return False
    if request.content_type != CONTENT_TYPE:
        raise Problem(415, "content_type", f"send the bytes as {CONTENT_TYPE}")
    require_plain(request)
    return True


def _number(request: web.Request, header: str) -> int | None:
    """A header that counts bytes. Raises a 400 Problem unless it is digits alone."""
    text = request.headers.get(header)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise bad_parameter(header, "must be a whole number of bytes, 0 or more")
    return int(text)
