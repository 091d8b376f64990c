"""IETF resumable uploads, the beginning: upload creation, whole or in part."""

from __future__ import annotations

from functools import partial

from aiohttp import hdrs, web

from application.handlers.execute import CommandResult
from application.handlers.uploads import RegisteredUpload
from application.ports.keys import Scope
from application.transfer.checksums import Checksum
from application.transfer.errors import OffsetMismatch, TooLong
from application.transfer.transfers import Incoming, Speaker
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING
from interfaces.rest.access import require
from interfaces.rest.problems import bad_parameter
from interfaces.uploads.body import Body, require_plain, whole
from interfaces.uploads.endpoints import upload_url
from interfaces.uploads.positions import with_position
from interfaces.uploads.resumable.answers import begun, stored
from interfaces.uploads.resumable.digests import (
    CONTENT_DIGEST,
    REPR_DIGEST,
    declared,
    digest_in,
)
from interfaces.uploads.resumable.interim import announce, progressing
from interfaces.uploads.resumable.naming import declaration
from interfaces.uploads.resumable.problems import inconsistent_length, unsupported_digest
from interfaces.uploads.resumable.request import (
    COMPLETE,
    complete_in,
    ietf_request,
    length_in,
    told,
)
from interfaces.uploads.serving import ARRIVALS, TRANSFERS, speaker_of
from interfaces.uploads.tus.creation import SMALL, place_of


@ietf_request
async def create(request: web.Request) -> web.StreamResponse:
    """POST to a collection: creates an upload, and takes the bytes that come along."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    require_plain(request)
    place = await place_of(request, principal.owner)
    complete = complete_in(request)
    if complete is None:
        raise bad_parameter(COMPLETE, "must be ?0 or ?1")
    incoming = partial(Incoming, offset=0, length=body_length(request), last=complete)
    size, checksum, representation = full_size(request, 0), *_digests(request, complete)
    file = declaration(request, size, representation)
    speaker, arrivals = speaker_of(request, principal), request.app[ARRIVALS]
    if complete and size is not None and size <= SMALL and request.content.is_eof():
        read = partial(_arrived, request, checksum)
        arrived = await arrivals.arrive(place, file, read, speaker)
        await announce(request, upload_url(request, arrived.upload.id))
        return await with_position(request, stored(request, arrived.upload), arrived.position)
    registered = await arrivals.announce(place, file, speaker)
    id = registered.upload.id
    await announce(request, upload_url(request, id))
    try:
        decided = await _first_bytes(
            request, registered, incoming(upload=id, size=size, checksum=checksum), speaker
        )
        answer = (require_whole if complete else begun)(request, decided.aggregate)
        return await with_position(request, answer, decided.position)
    except Exception as error:
        problem = told(error)
        problem.headers[hdrs.LOCATION] = upload_url(request, id)
        raise problem from error


def body_length(request: web.Request) -> int | None:
    """How many bytes the body has; None where that shows only at its end."""
    return request.content_length if request.body_exists else 0


def full_size(request: web.Request, offset: int) -> int | None:
    """The size of the file, said or implied. Raises a 400 Problem where the two differ."""
    said, length = length_in(request), body_length(request)
    implied = offset + length if complete_in(request) and length is not None else None
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
    return stored(request, upload)


def _digests(request: web.Request, complete: bool) -> tuple[Checksum | None, Checksum | None]:
    """What this body is held against, and what the whole file is."""
    content, whole = digest_in(request, CONTENT_DIGEST), digest_in(request, REPR_DIGEST)
    if whole is not None and not complete and declared(whole) is None:
        raise unsupported_digest("sha-256 of a file that comes in several requests")
    return content or (whole if complete else None), whole


async def _arrived(request: web.Request, checksum: Checksum | None) -> bytes:
    """A body that came along with the headers. Raises ChecksumMismatch, SenderGone, Stalled."""
    content = await whole(request)
    if checksum is not None:
        checksum.verify(content)
    return content


async def _first_bytes(
    request: web.Request, registered: RegisteredUpload, incoming: Incoming, speaker: Speaker
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
    chunks = progressing(request, upload.id, body)
    try:
        return await request.app[TRANSFERS].receive(incoming, chunks, speaker, body.here)
    except TooLong as error:
        if incoming.size is None:
            raise
        raise inconsistent_length(str(error)) from error
