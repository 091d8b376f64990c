"""tus 1.0.0, concatenation: a file that comes in parts, side by side, and is made one upload.

Source of the rules: https://tus.io/protocols/resumable-upload, section Concatenation.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

from aiohttp import hdrs, web
from msgspec.structs import replace

from application.commands import CancelUpload
from application.errors import NotFound
from application.handlers.execute import CommandResult
from application.ports.auth import Scope
from application.transfers.creation import BatchTarget, StandaloneTarget
from application.transfers.errors import BodyTooLarge, NotAcceptingBytes, OffsetMismatch
from application.transfers.receiver import ALGORITHMS, Checksum
from application.transfers.transfers import Actor, AppendRequest
from domain.ids import concatenated_batch_id_for, is_partial_upload
from domain.upload.aggregate import Upload
from domain.upload.state import GONE
from interfaces.common.access import (
    load_batch,
    load_upload,
    reject_batch_scoped_key,
    require,
    require_visible_stream,
)
from interfaces.common.body import Body, read_all, reject_content_encoding, single_header
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.requests import path_id
from interfaces.common.services import SERVICES
from interfaces.uploads import tus_protocol
from interfaces.uploads.setup import (
    CREATOR,
    PARTS,
    TRANSFERS,
    UPLOADS,
    actor_of,
    gone_problem,
    position_header,
    transfer_problem,
    upload_at,
    upload_url,
)
from interfaces.uploads.tus_protocol import (
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
    expires_header,
    expires_header_unrenewed,
    is_tus,
    metadata_in,
    parse_checksum,
    parse_length,
    tus_handler,
)

# tus 1.0.0, the beginning: creation, creation-with-upload, creation-defer-length.

SMALL = 256 * 1024  # bytes of a file that is held in memory, to be stored before it is recorded


@tus_handler
async def create_upload(request: web.Request) -> web.StreamResponse:
    """POST to a collection: registers an upload, and takes the bytes that come along."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    actor = actor_of(request, principal)
    place = await upload_target(request, principal.owner)
    size = declared_size(request)
    with_body = has_body(request)
    said = metadata_in(request)
    default = "" if tus_protocol.path_from_metadata(said) else str(request.app[SERVICES].new_id())
    file = tus_protocol.declaration(said, size, default=default)
    creator = request.app[CREATOR]
    length = request.content_length
    if size is not None and (length or 0) > size:
        raise BodyTooLarge(size)
    if size is not None and size <= SMALL and (size == 0 or (with_body and length == size)):
        read = partial(_whole, request, parse_checksum(request))
        arrived = await creator.create_with_content(place, file, read, actor)
        return await created_response(request, arrived.upload, arrived.position)
    registered = await creator.register(place, file, actor)
    if with_body and registered.upload.received == 0:
        begun = await receive_initial_body(request, registered.upload, actor)
        return await created_response(request, begun.aggregate, begun.position)
    return await created_response(request, registered.upload, registered.position)


async def upload_target(request: web.Request, owner: str) -> StandaloneTarget | BatchTarget:
    """The batch that the path names, or one of the file's own."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    if "id" in request.match_info:
        return BatchTarget(batch=(await load_batch(request, path_id(request))).id)
    reject_batch_scoped_key(principal)
    services = request.app[SERVICES]
    policy = services.settings.retry_policy_of("default")
    return StandaloneTarget(batch=services.new_id(), owner=owner, retry_policy=policy)


async def _whole(request: web.Request, checksum: Checksum | None) -> bytes:
    """A small body, checked. Raises ChecksumMismatch and what `whole` raises."""
    content = await read_all(request)
    if checksum is not None:
        checksum.verify(content)
    return content


async def receive_initial_body(
    request: web.Request, upload: Upload, actor: Actor
) -> CommandResult[Upload]:
    """The body of a creation. A client that learns of an error learns where to go on, too."""
    incoming = AppendRequest(
        upload=upload.id, offset=0, length=request.content_length, checksum=parse_checksum(request)
    )
    body = Body(request)
    async with _located(request, upload.id):
        return await request.app[TRANSFERS].receive(incoming, body, actor, body.here)


@asynccontextmanager
async def _located(request: web.Request, id: UUID) -> AsyncIterator[None]:
    try:
        yield
    except (NotFound, ConnectionError):
        raise
    except Exception as error:
        problem = transfer_problem(error)
        problem.headers[hdrs.LOCATION] = upload_url(request, id)
        raise problem from error


async def created_response(request: web.Request, upload: Upload, position: int) -> web.Response:
    """`position` is that of what was recorded, 0 where the upload was there already."""
    headers = {hdrs.LOCATION: upload_url(request, upload.id), OFFSET: str(upload.received)}
    headers |= expires_header(request, upload) | await position_header(request, position)
    return web.Response(status=201, headers=headers)


def declared_size(request: web.Request) -> int | None:
    """Upload-Length, or None where the client puts off saying it."""
    size, deferred = parse_length(request, LENGTH), single_header(request, DEFER)
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
    reject_content_encoding(request)
    return True


PARTIAL = "partial"
FINAL = "final;"

MAX_PARTS = 2500  # of one upload: as many URLs of 100 bytes fit into one header
MAX_KEPT = 2048  # bytes of a header that is kept as it was sent
_MANY = "many;"


@tus_handler
async def create_concatenated(request: web.Request) -> web.StreamResponse:
    """POST to a collection with Upload-Concat: announces a part, or joins parts into an upload."""
    concat = (single_header(request, CONCAT) or "").strip()
    if concat == PARTIAL:
        return await _announce(request)
    if concat.startswith(FINAL):
        return await _join(request, concat)
    raise bad_parameter(CONCAT, f"must be {PARTIAL}, or {FINAL} and the parts")


def concat_header(upload: Upload) -> dict[str, str]:
    """The header by which HEAD tells a part, and an upload joined from parts, from others."""
    if is_partial_upload(upload.id):
        return {CONCAT: PARTIAL}
    stored = upload.metadata.get(tus_protocol.CONCAT_METADATA_KEY)
    return {CONCAT: _expanded(stored)} if stored else {}


def reject_final_upload(upload: Upload) -> None:
    """Raises a 403 Problem for an upload that was joined from parts: it takes no bytes itself."""
    if tus_protocol.CONCAT_METADATA_KEY in upload.metadata:
        raise Problem(403, "joined", "this upload was joined from parts, and is complete")


async def _announce(request: web.Request) -> web.StreamResponse:
    """A part; its metadata is kept, and means nothing to the upload that it becomes part of."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    actor = actor_of(request, principal)
    place = await upload_target(request, principal.owner)
    size, with_body = declared_size(request), has_body(request)
    said = metadata_in(request)
    file = replace(tus_protocol.declaration(said, size, default=PARTIAL), path=PARTIAL)
    part = await request.app[PARTS].register(place, file, actor)
    if with_body or size == 0:
        part = await receive_initial_body(request, part.aggregate, actor)
    return await created_response(request, part.aggregate, part.position)


async def _join(request: web.Request, concat: str) -> web.StreamResponse:
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    place = await upload_target(request, principal.owner)
    addresses = concat.removeprefix(FINAL).split()
    if len(addresses) > MAX_PARTS:
        raise bad_parameter(CONCAT, f"must name at most {MAX_PARTS} parts, not {len(addresses)}")
    parts = [_part_at(request, address) for address in addresses]
    if not parts or len(set(parts)) < len(parts):
        raise bad_parameter(CONCAT, "must name one or more parts, each once")
    secret = request.app[SERVICES].log.id_secret
    if isinstance(
        place, StandaloneTarget
    ):  # the same parts make the same upload, however often it is asked
        place = replace(place, batch=concatenated_batch_id_for(parts, secret))
    said = metadata_in(request)
    file = tus_protocol.declaration(
        said, None, default=str(concatenated_batch_id_for(parts, secret))
    )
    file = replace(
        file,
        metadata={**file.metadata, tus_protocol.CONCAT_METADATA_KEY: _compacted(addresses, parts)},
    )
    joined = await request.app[PARTS].concatenate(place, file, parts, actor_of(request, principal))
    return await created_response(request, joined.upload, joined.position)


def _compacted(addresses: Sequence[str], parts: Sequence[UUID]) -> str:
    """The header as it is kept: exactly as it was sent while it is short.

    Of many parts only their ids are kept, and what all addresses have before them. Addresses that
    do not begin alike are kept as paths.
    """
    concat = FINAL + " ".join(addresses)
    if len(concat) <= MAX_KEPT:
        return concat
    base = addresses[0].partition(str(parts[0]))[0]
    named = zip(addresses, parts, strict=True)
    if any(address != f"{base}{part}" for address, part in named) or len(base) > MAX_KEPT:
        base = f"{UPLOADS}/"
    return f"{_MANY}{base} {b64encode(b''.join(part.bytes for part in parts)).decode()}"


def _expanded(stored: str) -> str:
    """The header to echo."""
    if not stored.startswith(_MANY):
        return stored
    base, _, encoded = stored.removeprefix(_MANY).partition(" ")
    try:
        octets = b64decode(encoded, validate=True)
        ids = [UUID(bytes=octets[at : at + 16]) for at in range(0, len(octets), 16)]
    except ValueError:  # metadata of a manifest that happens to have this key
        return stored
    return FINAL + " ".join(f"{base}{id}" for id in ids)


def _part_at(request: web.Request, address: str) -> UUID:
    """The part that an address names. Raises a 400 Problem."""
    part = upload_at(request, address)
    if part is None:
        raise bad_parameter(CONCAT, f"names {address[:200]!r}, which is no upload here")
    return part


# tus 1.0.0: what is offered, how far an upload is, its bytes, its end.
#
# Source of the rules: https://tus.io/protocols/resumable-upload

__all__ = ["append", "create", "discover", "head", "is_tus", "method_override", "terminate"]


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


@tus_handler
async def head(request: web.Request) -> web.StreamResponse:
    """HEAD of an upload: how far it is. A transfer that still runs is ended, and counted."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    id = path_id(request)
    await require_visible_stream(request, id)
    request.app[SERVICES].log.forget(id)  # another process may have received more of it
    upload = await request.app[TRANSFERS].current_upload(id, actor_of(request, principal))
    if upload.state in GONE:
        raise gone_problem(upload.state)
    headers = {OFFSET: str(upload.received), hdrs.CACHE_CONTROL: "no-store"}
    headers |= {DEFER: "1"} if upload.size is None else {LENGTH: str(upload.size)}
    headers |= concat_header(upload)
    if echo := tus_protocol.format(upload.metadata):
        headers[METADATA] = echo
    return web.Response(headers=headers | await expires_header_unrenewed(request, upload))


@tus_handler
async def append(request: web.Request) -> web.StreamResponse:
    """PATCH of an upload: bytes from the offset on."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await load_upload(request, path_id(request))
    reject_final_upload(upload)
    if request.content_type != CONTENT_TYPE:
        raise Problem(415, "content_type", f"send the bytes as {CONTENT_TYPE}")
    reject_content_encoding(request)
    offset = parse_length(request, OFFSET)
    if offset is None:
        raise bad_parameter(OFFSET, "is missing")
    incoming = AppendRequest(
        upload=upload.id,
        offset=offset,
        length=request.content_length,
        size=parse_length(request, LENGTH),
        checksum=parse_checksum(request),
    )
    body, position = Body(request), 0
    try:
        decided = await request.app[TRANSFERS].receive(
            incoming, body, actor_of(request, principal), body.here
        )
        upload, position = decided.aggregate, decided.position
    except NotAcceptingBytes as error:
        upload = await _of_finished(request, incoming, error)
    headers = {OFFSET: str(upload.received), **expires_header(request, upload)}
    return web.Response(status=204, headers=headers | await position_header(request, position))


@tus_handler
async def terminate(request: web.Request) -> web.StreamResponse:
    """DELETE of an upload: calls it off and frees its bytes."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await load_upload(request, path_id(request))
    if upload.state in GONE:
        raise gone_problem(upload.state)
    command = CancelUpload(upload=upload.id, reason="terminated by its sender")
    transfers = request.app[TRANSFERS]
    context = transfers.context(actor_of(request, principal))
    decided = await transfers.terminate(command, context)
    return web.Response(status=204, headers=await position_header(request, decided.position))


async def method_override(request: web.Request) -> web.StreamResponse:
    """POST to an upload, from behind a proxy that lets nothing else through."""
    method = (single_header(request, OVERRIDE) or "").upper()
    handlers: dict[str, Any] = {"PATCH": append, "HEAD": head, "DELETE": terminate}
    if method not in handlers:
        raise web.HTTPMethodNotAllowed(hdrs.METH_POST, ["HEAD", "GET", "PATCH", "DELETE"])
    response: web.StreamResponse = await handlers[method](request)
    return response


async def _of_finished(
    request: web.Request, incoming: AppendRequest, error: NotAcceptingBytes
) -> Upload:
    """A PATCH that repeats itself after the last byte is answered as it was the first time."""
    if error.state in GONE:
        raise error
    upload = await request.app[SERVICES].log.upload(incoming.upload)
    if incoming.offset != upload.received:
        raise OffsetMismatch(upload.received, incoming.offset)
    if incoming.length != 0:
        raise BodyTooLarge(upload.received)
    return upload
