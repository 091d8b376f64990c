"""Downloads of uploads and of the artifacts that processing attached to them."""

from __future__ import annotations

from contextlib import aclosing
from hashlib import sha256
from pathlib import PurePosixPath
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web

from application.ports.auth import Scope
from application.ports.blobs import BlobMissing
from application.transfers.locks import upload_blob_name
from domain.upload.aggregate import Upload
from domain.upload.state import GONE, INCOMING, UploadState
from interfaces.common.access import PRINCIPAL, load_upload, principal_of
from interfaces.common.problems import Problem
from interfaces.common.requests import ByteRange, Unsatisfiable, parse_range, path_id
from interfaces.common.responses import STREAMS, Stream
from interfaces.common.services import SERVICES
from interfaces.uploads.setup import gone_problem

INLINE_TYPES = frozenset(
    {
        "text/plain",
        *(f"image/{name}" for name in ("png", "jpeg", "gif", "bmp", "webp")),
        *(f"audio/{name}" for name in ("wave", "wav", "x-wav", "x-pn-wav", "webm", "ogg")),
        *(f"video/{name}" for name in ("webm", "ogg")),
        "application/ogg",
    }
)
"""Types that tusd sends `inline`; anything else, HTML, SVG and PDF included, is an attachment."""

_log = structlog.get_logger(__name__)


async def content(request: web.Request) -> web.StreamResponse:
    """Respond to GET of an upload's bytes, with support for Range."""
    return await _send_stored(request, await _load_current(request))


async def download(request: web.Request) -> web.StreamResponse:
    """Respond to GET of an upload as tusd does: with the bytes, or those received so far.

    Source: GetFile in tusd's unrouted_handler.go. Its stores differ for an incomplete file: a
    folder serves the bytes it has, S3 responds with an error.
    """
    upload = await _load_current(request)
    if upload.state not in INCOMING:
        return await _send_stored(request, upload, inline=_is_served_inline(upload))
    if upload.received == 0:
        return web.Response(status=204)
    return await _send_incomplete(request, upload)


async def _load_current(request: web.Request) -> Upload:
    """Load the upload that the path names. Raises NotFound."""
    upload = await load_upload(request, path_id(request))
    if upload.blob is None:  # the cache may be stale: another process may have received it
        request.app[SERVICES].log.forget(upload.id)
        upload = await load_upload(request, upload.id)
    return upload


async def _send_stored(
    request: web.Request, upload: Upload, *, inline: bool = False
) -> web.StreamResponse:
    if upload.state is UploadState.EXPIRED:
        raise gone_problem(upload.state)
    if upload.blob is None or upload.state in GONE:
        raise _no_bytes()
    _require_not_quarantined(request, upload)
    return await send_content(request, upload, inline=inline)


async def send_content(
    request: web.Request, upload: Upload, *, inline: bool = False
) -> web.StreamResponse:
    """Send the bytes of a received upload; the caller has checked that the client may read them."""
    assert upload.blob is not None
    # The type alone: its parameters come from the sender unchecked.
    media_type = (upload.media_type or "application/octet-stream").partition(";")[0]
    name = PurePosixPath(upload.path).name
    disposition = _disposition(name, inline=inline)
    return await _serve(request, upload.blob, upload.received, disposition, media_type)


def _is_served_inline(upload: Upload) -> bool:
    """Return whether tusd serves the file's type inline: none that can hold scripts."""
    return (upload.media_type or "") in INLINE_TYPES


async def _send_incomplete(request: web.Request, upload: Upload) -> web.StreamResponse:
    """Send the recorded bytes. Raises a 400 Problem if the store cannot read unfinished blobs."""
    blob, blobs = upload_blob_name(upload.id), request.app[SERVICES].blobs
    try:
        async for _ in blobs.read(blob, 0, 1):
            pass
    except BlobMissing:
        detail = "not all bytes of this upload are here yet"
        raise Problem(400, "incomplete_upload", detail) from None
    name = PurePosixPath(upload.path).name
    headers: dict[str, str] = {
        hdrs.CONTENT_TYPE: "application/octet-stream",
        hdrs.CONTENT_DISPOSITION: _disposition(name),
    }
    response = web.StreamResponse(headers=headers)
    return await _stream(request, response, blob, ByteRange(0, upload.received, upload.received))


async def artifact(request: web.Request) -> web.StreamResponse:
    """Respond to GET of an artifact that processing attached to an upload."""
    upload = await load_upload(request, path_id(request))
    _require_not_quarantined(request, upload)
    services, name = request.app[SERVICES], request.match_info["name"]
    view = await services.queries.upload(upload.id, owner=principal_of(request).visible_owner)
    blob = view.artifacts.get(name)
    if blob is None or upload.state in GONE:
        raise Problem(404, "not_found", "the upload has no such artifact")
    size = await services.blobs.size(blob)
    return await _serve(request, blob, size, _disposition(name), "application/octet-stream")


def _no_bytes() -> Problem:
    return Problem(404, "not_found", "the upload has no stored bytes")


def _require_not_quarantined(request: web.Request, upload: Upload) -> None:
    """Raise a 404 Problem for quarantined content, which only operators may know of and read."""
    if upload.state is UploadState.QUARANTINED and principal_of(request).scope not in (
        Scope.ADMIN,
        Scope.OPERATOR,
    ):
        raise _no_bytes()


async def _serve(
    request: web.Request, blob: str, size: int, disposition: str, media_type: str
) -> web.StreamResponse:
    etag = f'"{sha256(f"{blob} {size}".encode()).hexdigest()[:32]}"'
    headers: dict[str, str] = {
        hdrs.ETAG: etag,
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CACHE_CONTROL: "private, no-cache",
    }
    if _if_none_match(request.headers.get(hdrs.IF_NONE_MATCH, ""), etag):
        return web.Response(status=304, headers=headers)
    headers[hdrs.CONTENT_TYPE] = media_type
    headers[hdrs.CONTENT_DISPOSITION] = disposition
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    part = _requested_range(request, etag, size)
    status = 200
    if part is not None:
        status, headers[hdrs.CONTENT_RANGE] = 206, part.content_range
    stored = await request.app[SERVICES].blobs.size(blob)
    if stored < size:
        _log.error("stored_bytes_missing", blob=blob, stored=stored, recorded=size)
        raise Problem(500, "bytes_missing", "stored bytes are missing; the loss is logged")
    response = web.StreamResponse(status=status, headers=headers)
    return await _stream(request, response, blob, part or ByteRange(0, size, size))


async def _stream(
    request: web.Request, response: web.StreamResponse, blob: str, part: ByteRange
) -> web.StreamResponse:
    principal = request.get(PRINCIPAL)
    name = "callback" if principal is None else principal.name
    request.app[STREAMS].open(request, name, Stream.DOWNLOAD)
    response.content_length = part.end - part.start
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD and part.end > part.start:
        chunks = request.app[SERVICES].blobs.read(blob, part.start, part.end)
        sent = 0
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                await response.write(chunk)
                sent += len(chunk)
        if sent < part.end - part.start:
            raise Problem(500, "bytes_missing", f"{blob} ended {sent} bytes into the answer")
    await response.write_eof()
    return response


def _requested_range(request: web.Request, etag: str, size: int) -> ByteRange | None:
    """Return the range to send, None for all: also if If-Range names another version."""
    condition = request.headers.get(hdrs.IF_RANGE)
    if condition not in (None, etag):
        return None
    try:
        return parse_range(request.headers.get(hdrs.RANGE), size)
    except Unsatisfiable as error:
        headers: dict[str, str] = {hdrs.CONTENT_RANGE: str(error), hdrs.ACCEPT_RANGES: "bytes"}
        raise Problem(416, "range", f"the content has {size} bytes", headers=headers) from None


def _if_none_match(header: str, etag: str) -> bool:
    """Return whether If-None-Match names the content (weak comparison, RFC 9110 section 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in tags or header.strip() == "*"


def _disposition(name: str, *, inline: bool = False) -> str:
    """Return Content-Disposition with the file's name (RFC 6266), also in ASCII for old clients."""
    plain = "".join(
        character if character.isascii() and character.isprintable() else "_" for character in name
    )
    plain = plain.replace("\\", "_").replace('"', "_").replace("%", "_")
    kind = "inline" if inline else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
