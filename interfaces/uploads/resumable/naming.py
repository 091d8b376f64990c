"""What the creation of an IETF upload says of its file: path, media type, metadata."""

from __future__ import annotations

from urllib.parse import unquote_plus, unquote_to_bytes

from aiohttp import hdrs, web

from application.transfer.checksums import Checksum
from domain.errors import FieldError, ValidationFailed
from domain.file import FileDeclaration, path_error, validate_declaration
from interfaces.rest.params import Query
from interfaces.services import SERVICES
from interfaces.uploads.endpoints import is_tus_endpoint
from interfaces.uploads.forms.parts import UNREADABLE_PARAMETERS, file_name, header_parameters
from interfaces.uploads.headers import only
from interfaces.uploads.resumable.digests import declared
from interfaces.uploads.resumable.request import PARTIAL
from interfaces.uploads.tus import metadata
from interfaces.uploads.tus.request import metadata_in

_TELL_NOTHING = frozenset(
    {PARTIAL, "application/octet-stream", "application/x-www-form-urlencoded"}
)
"""The last is what curl says of whatever it sends."""


def declaration(request: web.Request, size: int | None, digest: Checksum | None) -> FileDeclaration:
    """The file: its path is `?path=`, else the name in Content-Disposition or Upload-Metadata.

    Raises ValidationFailed for a name that no file may have.
    """
    said = metadata_in(request)
    default = str(request.app[SERVICES].new_id())
    file = metadata.declaration(said, size, default=default)
    return FileDeclaration(
        path=_path(request) or _filename(request) or file.path,
        size=size,
        media_type=_media_type(request) or file.media_type,
        checksum=declared(digest) or file.checksum,
        metadata=said,
    )


def _path(request: web.Request) -> str | None:
    """The parameter `path`; a tus endpoint takes whatever else its clients add to the query."""
    others = tuple(request.query) if is_tus_endpoint(request) else ()
    Query(request, ("path", *others))
    for pair in request.rel_url.raw_query_string.split("&"):
        name, _, value = pair.partition("=")
        if unquote_plus(name) == "path":  # as bytes: what is not UTF-8 must not become another name
            return _sound("path", unquote_to_bytes(value.replace("+", " ")))
    return None


def _filename(request: web.Request) -> str | None:
    """The last segment: a name that is a path is not to be trusted (RFC 6266 section 4.3)."""
    header = only(request, hdrs.CONTENT_DISPOSITION)
    if header is None:
        return None
    _, semicolon, rest = header.partition(";")
    parameters = header_parameters(semicolon + rest)
    if parameters is None:
        raise ValidationFailed(FieldError("Content-Disposition", UNREADABLE_PARAMETERS))
    name = file_name(parameters)
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return _sound("Content-Disposition", last.encode("utf-8", "surrogateescape"))


def _sound(field: str, encoded: bytes) -> str | None:
    """A path that a file may have; None for an empty one. Raises ValidationFailed."""
    if not encoded:
        return None
    path = encoded.decode("utf-8", "surrogateescape")
    if problem := path_error(path):
        raise ValidationFailed(FieldError(field, problem))
    return path


def _media_type(request: web.Request) -> str | None:
    text = request.headers.get(hdrs.CONTENT_TYPE, "")
    if request.content_type in _TELL_NOTHING or not text:
        return None
    sound = not any(validate_declaration(FileDeclaration(path="-", media_type=text)))
    return text if sound else None
