"""tus 1.0.0, concatenation: a file that comes in parts, side by side, and is made one upload.

Source of the rules: https://tus.io/protocols/resumable-upload, section Concatenation.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from uuid import UUID

from aiohttp import web
from msgspec.structs import replace

from application.ports.keys import Scope
from application.transfer.arriving import Alone
from domain.ids import concatenated_batch_id_for, is_partial_upload
from domain.upload.aggregate import Upload
from interfaces.rest.access import require
from interfaces.rest.problems import Problem, bad_parameter
from interfaces.services import SERVICES
from interfaces.uploads.endpoints import UPLOADS, upload_at
from interfaces.uploads.headers import only
from interfaces.uploads.serving import PARTS, speaker_of
from interfaces.uploads.tus import metadata
from interfaces.uploads.tus.creation import (
    created,
    declared_size,
    first_bytes,
    has_body,
    place_of,
)
from interfaces.uploads.tus.request import CONCAT, metadata_in, tus_request

PARTIAL = "partial"
FINAL = "final;"

MAX_PARTS = 2500  # of one upload: as many URLs of 100 bytes fit into one header
MAX_KEPT = 2048  # bytes of a header that is kept as it was sent
_MANY = "many;"


@tus_request
async def create_concatenated(request: web.Request) -> web.StreamResponse:
    """POST to a collection with Upload-Concat: announces a part, or joins parts into an upload."""
    concat = (only(request, CONCAT) or "").strip()
    if concat == PARTIAL:
        return await _announce(request)
    if concat.startswith(FINAL):
        return await _join(request, concat)
    raise bad_parameter(CONCAT, f"must be {PARTIAL}, or {FINAL} and the parts")


def concat_of(upload: Upload) -> dict[str, str]:
    """The header by which HEAD tells a part, and an upload joined from parts, from others."""
    if is_partial_upload(upload.id):
        return {CONCAT: PARTIAL}
    stored = upload.metadata.get(metadata.CONCAT)
    return {CONCAT: _expanded(stored)} if stored else {}


def require_growing(upload: Upload) -> None:
    """Raises a 403 Problem for an upload that was joined from parts: it takes no bytes itself."""
    if metadata.CONCAT in upload.metadata:
        raise Problem(403, "joined", "this upload was joined from parts, and is complete")


async def _announce(request: web.Request) -> web.StreamResponse:
    """A part; its metadata is kept, and means nothing to the upload that it becomes part of."""
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    speaker = speaker_of(request, principal)
    place = await place_of(request, principal.owner)
    size, with_body = declared_size(request), has_body(request)
    said = metadata_in(request)
    file = replace(metadata.declaration(said, size, default=PARTIAL), path=PARTIAL)
    part = await request.app[PARTS].announce(place, file, speaker)
    if with_body or size == 0:
        part = await first_bytes(request, part.aggregate, speaker)
    return await created(request, part.aggregate, part.position)


async def _join(request: web.Request, concat: str) -> web.StreamResponse:
    principal = require(request, Scope.OPERATOR, Scope.UPLOADER)
    place = await place_of(request, principal.owner)
    addresses = concat.removeprefix(FINAL).split()
    if len(addresses) > MAX_PARTS:
        raise bad_parameter(CONCAT, f"must name at most {MAX_PARTS} parts, not {len(addresses)}")
    parts = [_part_at(request, address) for address in addresses]
    if not parts or len(set(parts)) < len(parts):
        raise bad_parameter(CONCAT, "must name one or more parts, each once")
    secret = request.app[SERVICES].log.id_secret
    if isinstance(place, Alone):  # the same parts make the same upload, however often it is asked
        place = replace(place, batch=concatenated_batch_id_for(parts, secret))
    said = metadata_in(request)
    file = metadata.declaration(said, None, default=str(concatenated_batch_id_for(parts, secret)))
    file = replace(file, metadata={**file.metadata, metadata.CONCAT: _compacted(addresses, parts)})
    joined = await request.app[PARTS].join(place, file, parts, speaker_of(request, principal))
    return await created(request, joined.upload, joined.position)


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
