"""What the creation of an IETF upload says of its file: path, media type, metadata."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.multipart import content_disposition_filename, parse_content_disposition

from application.transfer.checksums import Checksum
from domain.file import FileDeclaration, faults_of
from interfaces.rest.params import Query
from interfaces.services import SERVICES
from interfaces.uploads.endpoints import is_tus_endpoint
from interfaces.uploads.headers import only
from interfaces.uploads.resumable.digests import declared
from interfaces.uploads.resumable.request import PARTIAL
from interfaces.uploads.tus import metadata
from interfaces.uploads.tus.request import METADATA

_TELL_NOTHING = frozenset(
    {PARTIAL, "application/octet-stream", "application/x-www-form-urlencoded"}
)
"""The last is what curl says of whatever it sends."""


def declaration(request: web.Request, size: int | None, digest: Checksum | None) -> FileDeclaration:
    """The file: its path is `?path=`, else the name in Content-Disposition or Upload-Metadata."""
    said = metadata.parse(only(request, METADATA) or "")
    default = str(request.app[SERVICES].new_id())
    file = metadata.declaration(said, size, default=default)
    return FileDeclaration(
        path=_query(request).text("path") or _filename(request) or file.path,
        size=size,
        media_type=_media_type(request) or file.media_type,
        checksum=declared(digest) or file.checksum,
        metadata=said,
    )


def _query(request: web.Request) -> Query:
    """The query; a tus endpoint takes whatever else its clients add to it."""
    others = tuple(request.query) if is_tus_endpoint(request) else ()
    return Query(request, ("path", *others))


def _filename(request: web.Request) -> str | None:
    """The last segment: a name that is a path is not to be trusted (RFC 6266 section 4.3)."""
    header = request.headers.get(hdrs.CONTENT_DISPOSITION)
    _, parameters = parse_content_disposition(header)
    name = content_disposition_filename(parameters) or ""
    return name.replace("\\", "/").rpartition("/")[2] or None


def _media_type(request: web.Request) -> str | None:
    text = request.headers.get(hdrs.CONTENT_TYPE, "")
    if request.content_type in _TELL_NOTHING or not text:
        return None
    sound = not any(faults_of(FileDeclaration(path="-", media_type=text)))
    return text if sound else None
