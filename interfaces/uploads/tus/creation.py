"""tus 1.0.0, the beginning: creation, creation-with-upload, creation-defer-length."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

from aiohttp import hdrs, web

from application.errors import NotFound
from application.handlers.execute import CommandResult
from application.ports.keys import Scope
from application.transfer.arriving import Alone, Joining
from application.transfer.checksums import Checksum
from application.transfer.errors import TooLong
from application.transfer.transfers import Incoming, Speaker
from domain.upload.aggregate import Upload
from interfaces.rest.access import batch_of, require, require_unlimited
from interfaces.rest.params import id_in
from interfaces.rest.problems import Problem, bad_parameter
from interfaces.services import SERVICES
from interfaces.uploads.body import Body, require_plain, whole
from interfaces.uploads.endpoints import upload_url
from interfaces.uploads.headers import only
from interfaces.uploads.positions import placed
from interfaces.uploads.refusals import refusal_of
from interfaces.uploads.serving import ARRIVALS, TRANSFERS, speaker_of
from interfaces.uploads.tus import metadata
from interfaces.uploads.tus.expiring import expires
from interfaces.uploads.tus.request import (
    CONTENT_TYPE,
    DEFER,
    LENGTH,
    OFFSET,
    checksum_in,
    metadata_in,
    number_in,
    tus_request,
)

SMALL = 256 * 1024  # bytes of a file that is held in memory, to be stored before it is recorded


@tus_request
async def create_upload(request: web.Request) -> web.StreamResponse:
    """POST to a collection: registers an upload, and takes the bytes that come along."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    speaker = speaker_of(request, principal)
    place = await place_of(request, principal.owner)
    size = declared_size(request)
    with_body = has_body(request)
    said = metadata_in(request)
    default = "" if metadata.path_in(said) else str(request.app[SERVICES].new_id())
    file = metadata.declaration(said, size, default=default)
    arrivals = request.app[ARRIVALS]
    length = request.content_length
    if size is not None and (length or 0) > size:
        raise TooLong(size)
    if size is not None and size <= SMALL and (size == 0 or (with_body and length == size)):
        read = partial(_whole, request, checksum_in(request))
        arrived = await arrivals.arrive(place, file, read, speaker)
        return await created(request, arrived.upload, arrived.position)
    registered = await arrivals.announce(place, file, speaker)
    if with_body and registered.upload.received == 0:
        begun = await first_bytes(request, registered.upload, speaker)
        return await created(request, begun.aggregate, begun.position)
    return await created(request, registered.upload, registered.position)


async def place_of(request: web.Request, owner: str) -> Alone | Joining:
    """The batch that the path names, or one of the file's own."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    if "id" in request.match_info:
        return Joining(batch=(await batch_of(request, id_in(request))).id)
    require_unlimited(principal)
    services = request.app[SERVICES]
    policy = services.settings.retry_policy_of("default")
    return Alone(batch=services.new_id(), owner=owner, retry_policy=policy)


async def _whole(request: web.Request, checksum: Checksum | None) -> bytes:
    """A small body, checked. Raises ChecksumMismatch and what `whole` raises."""
    content = await whole(request)
    if checksum is not None:
        checksum.verify(content)
    return content


async def first_bytes(
    request: web.Request, upload: Upload, speaker: Speaker
) -> CommandResult[Upload]:
    """The body of a creation. A client that learns of an error learns where to go on, too."""
    incoming = Incoming(
        upload=upload.id, offset=0, length=request.content_length, checksum=checksum_in(request)
    )
    body = Body(request)
    async with _located(request, upload.id):
        return await request.app[TRANSFERS].receive(incoming, body, speaker, body.here)


@asynccontextmanager
async def _located(request: web.Request, id: UUID) -> AsyncIterator[None]:
    try:
        yield
    except (NotFound, ConnectionError):
        raise
    except Exception as error:
        problem = refusal_of(error)
        problem.headers[hdrs.LOCATION] = upload_url(request, id)
        raise problem from error


async def created(request: web.Request, upload: Upload, position: int) -> web.Response:
    """`position` is that of what was recorded, 0 where the upload was there already."""
    headers = {hdrs.LOCATION: upload_url(request, upload.id), OFFSET: str(upload.received)}
    headers |= expires(request, upload) | await placed(request, position)
    return web.Response(status=201, headers=headers)


def declared_size(request: web.Request) -> int | None:
    """Upload-Length, or None where the client puts off saying it."""
    size, deferred = number_in(request, LENGTH), only(request, DEFER)
    if deferred not in (None, "1"):
        raise bad_parameter(DEFER, "must be 1")
    if (size is None) == (deferred is None):
        raise bad_parameter(LENGTH, f"must be given, or else {DEFER}: 1")
    return size


def has_body(request: web.Request) -> bool:
    if not request.body_exists or request.content_length == 0:
        return False
    if request.content_type != CONTENT_TYPE:
        raise Problem(415, "content_type", f"send the bytes as {CONTENT_TYPE}")
    require_plain(request)
    return True
