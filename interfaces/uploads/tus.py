"""tus 1.0.0: handlers of creation, concatenation, HEAD, PATCH and DELETE.

Source of the rules: https://tus.io/protocols/resumable-upload. "Part" means a partial upload of the
extension concatenation.
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

from application.commands import UploadCommand
from application.errors import NotFound
from application.handlers.execute import CommandResult
from application.ports.auth import Principal, Scope
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
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.requests import (
    Body,
    path_id,
    read_all,
    reject_content_encoding,
    single_header,
)
from interfaces.common.services import SERVICES
from interfaces.uploads import tus_protocol as protocol
from interfaces.uploads.setup import (
    CREATOR,
    PARTS,
    TRANSFERS,
    UPLOADS,
    actor_of,
    gone_problem,
    parse_upload_url,
    position_header,
    transfer_problem,
    upload_url,
)

MAX_IN_MEMORY_BYTES = 256 * 1024  # of a file that is read whole, and stored before it is recorded


@protocol.tus_handler
async def create_upload(request: web.Request) -> web.StreamResponse:
    """Create an upload, and receive the bytes in the same request: POST to a collection."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    actor = actor_of(request, principal)
    target = await upload_target(request, principal)
    size = declared_size(request)
    with_body = has_body(request)
    metadata = protocol.parse_metadata(request)
    file = protocol.declaration(metadata, size, default=lambda: str(request.app[SERVICES].new_id()))
    creator = request.app[CREATOR]
    length = request.content_length
    if size is not None and (length or 0) > size:
        raise BodyTooLarge(size)
    if (
        size is not None
        and size <= MAX_IN_MEMORY_BYTES
        and (size == 0 or (with_body and length == size))
    ):
        read = partial(_read_body, request, protocol.parse_checksum(request))
        created = await creator.create_with_content(target, file, read, actor)
        return await created_response(request, created.upload, created.position)
    registered = await creator.register(target, file, actor)
    if with_body and registered.upload.received == 0:
        appended = await receive_initial_body(request, registered.upload, actor)
        return await created_response(request, appended.aggregate, appended.position)
    return await created_response(request, registered.upload, registered.position)


async def upload_target(
    request: web.Request, principal: Principal
) -> StandaloneTarget | BatchTarget:
    """Return the batch that the path names, or a new one for this file alone."""
    if "id" in request.match_info:
        batch = await load_batch(request, path_id(request))
        return BatchTarget(batch=batch.id, owner=batch.owner)
    reject_batch_scoped_key(principal)
    services = request.app[SERVICES]
    policy = services.settings.retry_policy_of("default")
    return StandaloneTarget(batch=services.new_id(), owner=principal.owner, retry_policy=policy)


async def _read_body(request: web.Request, checksum: Checksum | None) -> bytes:
    """Read a small body and verify it. Raises BodyChecksumMismatch and TransferAborted."""
    content = await read_all(request)
    if checksum is not None:
        checksum.verify(content)
    return content


async def receive_initial_body(
    request: web.Request, upload: Upload, actor: Actor
) -> CommandResult[Upload]:
    """Receive the body of a creation. Error responses have the URL with which to resume."""
    append_request = AppendRequest(
        upload=upload.id,
        offset=0,
        length=request.content_length,
        checksum=protocol.parse_checksum(request),
    )
    body = Body(request)
    async with _add_location_to_errors(request, upload.id):
        return await request.app[TRANSFERS].receive(append_request, body, actor, body.read_buffered)


@asynccontextmanager
async def _add_location_to_errors(request: web.Request, id: UUID) -> AsyncIterator[None]:
    try:
        yield
    except (NotFound, ConnectionError):
        raise
    except Exception as error:
        problem = transfer_problem(error)
        problem.headers[hdrs.LOCATION] = upload_url(request, id)
        raise problem from error


async def created_response(request: web.Request, upload: Upload, position: int) -> web.Response:
    """Return the response to a creation at `position`, 0 if the upload existed before."""
    headers = {hdrs.LOCATION: upload_url(request, upload.id), protocol.OFFSET: str(upload.received)}
    headers |= protocol.expires_header(request, upload) | await position_header(request, position)
    return web.Response(status=201, headers=headers)


def declared_size(request: web.Request) -> int | None:
    """Return Upload-Length, or None if the client defers it."""
    size, deferred = (
        protocol.parse_length(request, protocol.LENGTH),
        single_header(request, protocol.DEFER),
    )
    if deferred not in (None, "1"):
        raise bad_parameter(protocol.DEFER, "must be 1")
    if (size is None) == (deferred is None):
        raise bad_parameter(protocol.LENGTH, f"must be given, or else {protocol.DEFER}: 1")
    return size


def has_body(request: web.Request) -> bool:
    if not request.body_exists or request.content_length == 0:
        return False
    if request.content_type != protocol.CONTENT_TYPE:
        raise Problem(415, "content_type", f"send the bytes as {protocol.CONTENT_TYPE}")
    reject_content_encoding(request)
    return True


PARTIAL = "partial"
FINAL = "final;"

MAX_PARTS = 2500  # of one upload: as many URLs of 100 bytes fit into one header
MAX_VERBATIM_BYTES = 2048  # of a header that is stored as it was sent
_PACKED = "many;"


@protocol.tus_handler
async def create_concatenated(request: web.Request) -> web.StreamResponse:
    """Create a part, or concatenate parts into an upload: POST with Upload-Concat."""
    concat = (single_header(request, protocol.CONCAT) or "").strip()
    if concat == PARTIAL:
        return await _create_part(request)
    if concat.startswith(FINAL):
        return await _concatenate(request, concat)
    raise bad_parameter(protocol.CONCAT, f"must be {PARTIAL}, or {FINAL} and the parts")


def concat_header(upload: Upload) -> dict[str, str]:
    """Return Upload-Concat for a part or a concatenated upload, empty for others."""
    if is_partial_upload(upload.id):
        return {protocol.CONCAT: PARTIAL}
    stored = upload.metadata.get(protocol.CONCAT_METADATA_KEY)
    return {protocol.CONCAT: _unpack_concat(stored)} if stored else {}


def reject_final_upload(upload: Upload) -> None:
    """Raise a 403 Problem for a concatenated upload, which accepts no bytes itself."""
    if protocol.CONCAT_METADATA_KEY in upload.metadata:
        raise Problem(403, "joined", "this upload was joined from parts, and is complete")


async def _create_part(request: web.Request) -> web.StreamResponse:
    """Create a part; its metadata is stored, but not used for the concatenated upload."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    actor = actor_of(request, principal)
    target = await upload_target(request, principal)
    size, with_body = declared_size(request), has_body(request)
    metadata = protocol.parse_metadata(request)
    file = protocol.declaration(metadata, size, default=lambda: PARTIAL)
    file = replace(file, path=PARTIAL)
    part = await request.app[PARTS].register(target, file, actor)
    if with_body or size == 0:
        part = await receive_initial_body(request, part.aggregate, actor)
    return await created_response(request, part.aggregate, part.position)


async def _concatenate(request: web.Request, concat: str) -> web.StreamResponse:
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    target = await upload_target(request, principal)
    urls = concat.removeprefix(FINAL).split()
    if len(urls) > MAX_PARTS:
        raise bad_parameter(
            protocol.CONCAT, f"must name at most {MAX_PARTS} parts, not {len(urls)}"
        )
    parts = [_parse_part_url(request, url) for url in urls]
    if not parts or len(set(parts)) < len(parts):
        raise bad_parameter(protocol.CONCAT, "must name one or more parts, each once")
    secret = request.app[SERVICES].log.id_secret
    if isinstance(target, StandaloneTarget):
        # Idempotent: the same parts always make the same upload.
        target = replace(target, batch=concatenated_batch_id_for(parts, secret))
    metadata = protocol.parse_metadata(request)
    file = protocol.declaration(
        metadata, None, default=lambda: str(concatenated_batch_id_for(parts, secret))
    )
    file = replace(
        file,
        metadata={**file.metadata, protocol.CONCAT_METADATA_KEY: _pack_concat(urls, parts)},
    )
    joined = await request.app[PARTS].concatenate(target, file, parts, actor_of(request, principal))
    return await created_response(request, joined.upload, joined.position)


def _pack_concat(urls: Sequence[str], parts: Sequence[UUID]) -> str:
    """Return the header in the form in which it is stored: verbatim if it is short.

    Of many parts only their ids and the common prefix of their URLs are stored; URLs without a
    common prefix are stored as paths.
    """
    concat = FINAL + " ".join(urls)
    if len(concat) <= MAX_VERBATIM_BYTES:
        return concat
    base = urls[0].partition(str(parts[0]))[0]
    named = zip(urls, parts, strict=True)
    if any(url != f"{base}{part}" for url, part in named) or len(base) > MAX_VERBATIM_BYTES:
        base = f"{UPLOADS}/"
    return f"{_PACKED}{base} {b64encode(b''.join(part.bytes for part in parts)).decode()}"


def _unpack_concat(stored: str) -> str:
    """Return the header to echo, from the form in which it is stored."""
    if not stored.startswith(_PACKED):
        return stored
    base, _, encoded = stored.removeprefix(_PACKED).partition(" ")
    try:
        octets = b64decode(encoded, validate=True)
        ids = [UUID(bytes=octets[at : at + 16]) for at in range(0, len(octets), 16)]
    except ValueError:  # metadata of a manifest that happens to have this key
        return stored
    return FINAL + " ".join(f"{base}{id}" for id in ids)


def _parse_part_url(request: web.Request, url: str) -> UUID:
    """Return the id of the part that a URL names. Raises a 400 Problem."""
    part = parse_upload_url(request, url)
    if part is None:
        raise bad_parameter(protocol.CONCAT, f"names {url[:200]!r}, which is no upload here")
    return part


async def discover(request: web.Request) -> web.StreamResponse:
    """Respond to OPTIONS with the supported extensions and limits, without authentication."""
    headers = {
        protocol.RESUMABLE: protocol.VERSION,
        "Tus-Version": protocol.VERSION,
        "Tus-Extension": protocol.EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        "Tus-Max-Size": str(request.app[SERVICES].settings.max_file_size),
    }
    return web.Response(status=204, headers=headers)


async def create(request: web.Request) -> web.StreamResponse:
    """Create an upload or a part, or concatenate parts: POST to a collection.

    For `/v1/uploads`, and for `/v1/batches/{id}/uploads` if `tus_protocol.is_tus(request)`.
    """
    if protocol.CONCAT in request.headers:
        return await create_concatenated(request)
    return await create_upload(request)


@protocol.tus_handler
async def head(request: web.Request) -> web.StreamResponse:
    """Respond to HEAD with the upload's offset; preempts a running transfer to know it."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    id = path_id(request)
    await require_visible_stream(request, id)
    request.app[SERVICES].log.forget(id)  # another process may have received more of it
    upload = await request.app[TRANSFERS].current_upload(id, actor_of(request, principal))
    if upload.state in GONE:
        raise gone_problem(upload.state)
    headers = {protocol.OFFSET: str(upload.received), hdrs.CACHE_CONTROL: "no-store"}
    headers |= {protocol.DEFER: "1"} if upload.size is None else {protocol.LENGTH: str(upload.size)}
    headers |= concat_header(upload)
    if echo := protocol.format(upload.metadata):
        headers[protocol.METADATA] = echo
    return web.Response(headers=headers | await protocol.expires_header_unrenewed(request, upload))


@protocol.tus_handler
async def append(request: web.Request) -> web.StreamResponse:
    """Append the body at an offset: PATCH."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await load_upload(request, path_id(request))
    reject_final_upload(upload)
    if request.content_type != protocol.CONTENT_TYPE:
        raise Problem(415, "content_type", f"send the bytes as {protocol.CONTENT_TYPE}")
    reject_content_encoding(request)
    offset = protocol.parse_length(request, protocol.OFFSET)
    if offset is None:
        raise bad_parameter(protocol.OFFSET, "is missing")
    append_request = AppendRequest(
        upload=upload.id,
        offset=offset,
        length=request.content_length,
        size=protocol.parse_length(request, protocol.LENGTH),
        checksum=protocol.parse_checksum(request),
    )
    body, position = Body(request), 0
    try:
        result = await request.app[TRANSFERS].receive(
            append_request, body, actor_of(request, principal), body.read_buffered
        )
        upload, position = result.aggregate, result.position
    except NotAcceptingBytes as error:
        upload = await _finished_upload(request, append_request, error)
    headers = {protocol.OFFSET: str(upload.received), **protocol.expires_header(request, upload)}
    return web.Response(status=204, headers=headers | await position_header(request, position))


@protocol.tus_handler
async def terminate(request: web.Request) -> web.StreamResponse:
    """Cancel an upload and delete its bytes: DELETE."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    upload = await load_upload(request, path_id(request))
    if upload.state in GONE:
        raise gone_problem(upload.state)
    command = UploadCommand(upload.id, partial(Upload.cancel, reason="terminated by its sender"))
    transfers = request.app[TRANSFERS]
    context = transfers.context(actor_of(request, principal))
    result = await transfers.terminate(command, context)
    return web.Response(status=204, headers=await position_header(request, result.position))


async def method_override(request: web.Request) -> web.StreamResponse:
    """Dispatch a POST with X-HTTP-Method-Override, for proxies that pass only GET and POST."""
    method = (single_header(request, protocol.OVERRIDE) or "").upper()
    handlers: dict[str, Any] = {"PATCH": append, "HEAD": head, "DELETE": terminate}
    if method not in handlers:
        raise web.HTTPMethodNotAllowed(hdrs.METH_POST, ["HEAD", "GET", "PATCH", "DELETE"])
    response: web.StreamResponse = await handlers[method](request)
    return response


async def _finished_upload(
    request: web.Request, append_request: AppendRequest, error: NotAcceptingBytes
) -> Upload:
    """Accept a PATCH that is repeated after the last byte, so that its response is the same."""
    if error.state in GONE:
        raise error
    upload = await request.app[SERVICES].log.upload(append_request.upload)
    if append_request.offset != upload.received:
        raise OffsetMismatch(upload.received, append_request.offset)
    if append_request.length != 0:
        raise BodyTooLarge(upload.received)
    return upload
