"""IETF resumable uploads: versions, headers, digests, problem types, 104 responses, declarations.

Sources: draft-ietf-httpbis-resumable-upload, its texts of interop versions 5, 6 and 8, problem
types included (completed-upload up to version 6); RFC 9530 for Content-Digest and Repr-Digest, of
which only secure algorithms are accepted; draft-ietf-httpapi-digest-fields-problem-types.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import AsyncIterator
from urllib.parse import unquote_plus, unquote_to_bytes
from uuid import UUID

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Handler

from application.transfers.errors import BodyChecksumMismatch, NotAcceptingBytes, OffsetMismatch
from application.transfers.receiver import Checksum
from domain.errors import FieldError, ValidationFailed
from domain.file import FileDeclaration, is_media_type, path_error
from domain.upload.state import GONE, UploadState
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.requests import CONTINUE_PENDING, Query, single_header
from interfaces.common.services import SERVICES
from interfaces.uploads import tus_protocol
from interfaces.uploads.multipart import UNREADABLE_PARAMETERS, file_name, header_parameters
from interfaces.uploads.setup import is_tus_endpoint, transfer_problem
from interfaces.uploads.tus_protocol import is_tus, parse_metadata

_TYPE = "https://iana.org/assignments/http-problem-types#{name}"


def offset_mismatch(expected: int, provided: int) -> Problem:
    return Problem(
        409,
        "offset_mismatch",
        f"the upload stands at offset {expected}, not {provided}",
        title="offset from request does not match offset of resource",
        type=_TYPE.format(name="mismatching-upload-offset"),
        members={"expected-offset": expected, "provided-offset": provided},
        headers={"Upload-Offset": str(expected)},
    )


def completed(size: int) -> Problem:
    return Problem(
        400,
        "completed_upload",
        f"all {size} bytes of the upload are here",
        title="upload is already completed",
        type=_TYPE.format(name="completed-upload"),
        headers={"Upload-Offset": str(size)},
    )


def inconsistent_length(detail: str) -> Problem:
    return Problem(
        400,
        "inconsistent_length",
        detail,
        title="inconsistent length values for upload",
        type=_TYPE.format(name="inconsistent-upload-length"),
    )


def digest_mismatch() -> Problem:
    return Problem(
        400,
        "digest_mismatch",
        "the bytes are not those the digest was made of; none of them is kept",
        title="digest values do not match",
        type=_TYPE.format(name="digest-mismatching-values"),
    )


def unsupported_digest(names: str) -> Problem:
    return Problem(
        400,
        "unsupported_digest",
        f"send a digest of {names}",
        title="hashing algorithm is not supported",
        type=_TYPE.format(name="digest-unsupported-algorithms"),
        headers={"Want-Content-Digest": "sha-256=10, sha-512=5"},
    )


def invalid_digest(header: str) -> Problem:
    return Problem(
        400,
        "invalid_digest",
        f"{header} cannot be read, or is of the wrong length",
        title="digest value is invalid",
        type=_TYPE.format(name="digest-invalid-values"),
    )


def inactive(state: UploadState) -> Problem:
    """Return a 404, which interop version 5 requires for an upload that no longer exists."""
    return Problem(404, "not_found", f"the upload is {state}")


CONTENT_DIGEST = "Content-Digest"
REPR_DIGEST = "Repr-Digest"

_SIZES = {"sha-256": 32, "sha-512": 64}  # bytes of a digest
_MEMBER = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):\s*", re.ASCII)


def parse_digest(request: web.Request, header: str) -> Checksum | None:
    """Parse a digest of a supported algorithm, preferably sha-256; None without the header.

    Raises a 400 Problem if no algorithm is supported: ignoring the header would skip the check.
    """
    text = ",".join(request.headers.getall(header, []))
    if not text.strip():
        return None
    found = dict(_parse_digest_member(header, text) for text in text.split(","))
    for name in _SIZES:
        if name in found:
            return Checksum(name.replace("-", ""), _decode_digest(header, name, found[name]))
    raise unsupported_digest(" or ".join(_SIZES))


def declaration_checksum(digest: Checksum | None) -> str | None:
    """Return the digest as a declaration's checksum, against which the pipeline checks the file."""
    if digest is None or digest.algorithm != "sha256":
        return None
    return f"sha256:{digest.digest.hex()}"


def _parse_digest_member(header: str, text: str) -> tuple[str, str]:
    found = _MEMBER.fullmatch(text)
    if found is None:
        raise invalid_digest(header)
    return found[1], found[2]


def _decode_digest(header: str, algorithm: str, text: str) -> bytes:
    try:
        digest = b64decode(text, validate=True)
    except NotBase64:
        raise invalid_digest(header) from None
    if len(digest) != _SIZES[algorithm]:
        raise invalid_digest(header)
    return digest


INTEROP = "Upload-Draft-Interop-Version"
COMPLETE = "Upload-Complete"
OFFSET = "Upload-Offset"
LENGTH = "Upload-Length"
LIMIT = "Upload-Limit"
PARTIAL = "application/partial-upload"

VERSIONS = (5, 6, 8)

_INTEGER = re.compile(r"(\d{1,15})(?:\s*;.*)?", re.ASCII)  # RFC 9651 section 3.3.1, not negative
_BOOLEAN = re.compile(r"\?([01])(?:\s*;.*)?", re.ASCII)


def is_ietf(request: web.Request) -> bool:
    """Return whether a request uses this protocol; requests of tus always name their version."""
    return not is_tus(request) and (INTEROP in request.headers or COMPLETE in request.headers)


def interop_version(request: web.Request) -> int | None:
    """Return the client's interop version; None if it names none, or an unsupported one.

    Such a client never gets 104, and responses in the format of the latest version.
    """
    version = _parse_integer(request, INTEROP)
    return version if version in VERSIONS else None


def parse_upload_complete(request: web.Request) -> bool | None:
    """Parse Upload-Complete; None if it is missing, or not a boolean and therefore ignored."""
    found = _BOOLEAN.fullmatch(_single_item(request, COMPLETE))
    return found[1] == "1" if found else None


def parse_offset(request: web.Request) -> int:
    """Parse Upload-Offset. Raises a 400 Problem without one."""
    offset = _parse_integer(request, OFFSET)
    if offset is None:
        raise bad_parameter(OFFSET, "must be a whole number of bytes, 0 or more")
    return offset


def parse_length(request: web.Request) -> int | None:
    return _parse_integer(request, LENGTH)


def limits(request: web.Request, *, renewed: bool = True) -> str:
    """Return the value of Upload-Limit.

    The age counts from the last recorded event, so it is sent only if this request recorded one
    (`renewed`).
    """
    settings = request.app[SERVICES].settings
    if not renewed:
        return f"max-size={settings.max_file_size}"
    age = "expires" if interop_version(request) == 5 else "max-age"
    return f"max-size={settings.max_file_size}, {age}={int(settings.upload_expiry)}"


def upload_complete_header(complete: bool) -> str:
    return "?1" if complete else "?0"


def ietf_request(handler: Handler) -> Handler:
    """Wrap a handler of this protocol, to respond to errors in the format of its drafts.

    An error never completes an upload, so every error response has `Upload-Complete: ?0`.
    """

    async def wrapped(request: web.Request) -> web.StreamResponse:
        try:
            interop_version(request)  # rejects duplicate headers before the handler has effects
            response = await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            problem = ietf_problem(error)
            problem.headers.setdefault(COMPLETE, "?0")
            if problem.status == 413:
                problem.headers[LIMIT] = limits(request)
            response = problem.response(request)
        if request.get(CONTINUE_PENDING):
            # The client may or may not send the body now: the next bytes are ambiguous.
            response.force_close()
        return response

    return wrapped


def ietf_problem(error: Exception) -> Problem:
    """Return the problem for a client of this protocol."""
    match error:
        case OffsetMismatch(offset=offset, claimed=claimed):
            return offset_mismatch(offset, claimed)
        case BodyChecksumMismatch():
            return digest_mismatch()
        case NotAcceptingBytes(state=state) if state in GONE:
            return inactive(state)
        case Problem(status=410):
            return Problem(404, "not_found", error.detail, headers=error.headers)
    return transfer_problem(error)


def _parse_integer(request: web.Request, header: str) -> int | None:
    found = _INTEGER.fullmatch(_single_item(request, header))
    return int(found[1]) if found else None


def _single_item(request: web.Request, header: str) -> str:
    """Return the header as one item. Raises a 400 Problem for several that differ."""
    return (single_header(request, header) or "").strip()


PROGRESS_INTERVAL = 1.0  # seconds between two 104 responses with the offset, at least

PROXIED = (
    "Via",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Real-IP",
)
"""Headers that show a proxy: nginx treats 104 as the final response, Go fails after five."""


def supports_104(request: web.Request) -> bool:
    """Return whether to send interim responses, by the setting `interim_responses`.

    `auto` sends none behind a proxy, which the settings or the request's headers show.
    """
    settings = request.app[SERVICES].settings
    if settings.interim_responses != "auto":
        return settings.interim_responses == "on"
    return not settings.trust_forwarded and not any(name in request.headers for name in PROXIED)


async def send_104(request: web.Request, location: str) -> None:
    """Send a 104 response with the upload's URL, with which an interrupted client can resume."""
    await _write_104(request, {hdrs.LOCATION: location, LIMIT: limits(request)})


async def with_104_progress(
    request: web.Request, upload: UUID, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """Yield the chunks, and send 104 responses with the durable and recorded offset meanwhile."""
    loop = asyncio.get_running_loop()
    due, reported = loop.time() + PROGRESS_INTERVAL, 0
    async for chunk in chunks:
        yield chunk
        if loop.time() >= due:
            due = loop.time() + PROGRESS_INTERVAL
            received = (await request.app[SERVICES].log.upload(upload)).received
            if received > reported:
                reported = received
                await _write_104(request, {OFFSET: str(received)})


async def _write_104(request: web.Request, headers: dict[str, str]) -> None:
    """Write a 104 response, but not to clients of another version (all drafts) or of HTTP/1.0."""
    version = interop_version(request)
    if version is None or request.version < HttpVersion11 or not supports_104(request):
        return
    lines = [f"{name}: {value}" for name, value in {INTEROP: str(version), **headers}.items()]
    head = "\r\n".join(["HTTP/1.1 104 Upload Resumption Supported", *lines, "", ""])
    await request.writer.write(head.encode("latin-1"))
    request.writer.output_size = 0  # the final response has not begun


_UNINFORMATIVE_TYPES = frozenset(
    {PARTIAL, "application/octet-stream", "application/x-www-form-urlencoded"}
)
"""Types that do not describe the file; curl sends the last one for any file."""


def declaration(request: web.Request, size: int | None, digest: Checksum | None) -> FileDeclaration:
    """Return the file that the request declares.

    Its path is `?path=`, else the name in Content-Disposition or Upload-Metadata.

    Raises ValidationFailed for a name that no file may have.
    """
    metadata = parse_metadata(request)
    file = tus_protocol.declaration(
        metadata, size, default=lambda: str(request.app[SERVICES].new_id())
    )
    return FileDeclaration(
        path=_path(request) or _filename(request) or file.path,
        size=size,
        media_type=_media_type(request) or file.media_type,
        checksum=declaration_checksum(digest) or file.checksum,
        metadata=metadata,
    )


def _path(request: web.Request) -> str | None:
    """Return the parameter `path`; a tus endpoint ignores other parameters that clients add."""
    others = tuple(request.query) if is_tus_endpoint(request) else ()
    Query(request, ("path", *others))
    for pair in request.rel_url.raw_query_string.split("&"):
        name, _, value = pair.partition("=")
        if unquote_plus(name) == "path":  # as bytes: invalid UTF-8 must not become another name
            return _checked_path("path", unquote_to_bytes(value.replace("+", " ")))
    return None


def _filename(request: web.Request) -> str | None:
    """Return the last segment of the name: its folders are not trusted (RFC 6266 section 4.3)."""
    header = single_header(request, hdrs.CONTENT_DISPOSITION)
    if header is None:
        return None
    _, semicolon, rest = header.partition(";")
    parameters = header_parameters(semicolon + rest)
    if parameters is None:
        raise ValidationFailed(FieldError("Content-Disposition", UNREADABLE_PARAMETERS))
    name = file_name(parameters)
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return _checked_path("Content-Disposition", last.encode("utf-8", "surrogateescape"))


def _checked_path(field: str, encoded: bytes) -> str | None:
    """Return a valid path, None for an empty one. Raises ValidationFailed."""
    if not encoded:
        return None
    path = encoded.decode("utf-8", "surrogateescape")
    if problem := path_error(path):
        raise ValidationFailed(FieldError(field, problem))
    return path


def _media_type(request: web.Request) -> str | None:
    text = request.headers.get(hdrs.CONTENT_TYPE, "")
    if request.content_type in _UNINFORMATIVE_TYPES or not text:
        return None
    return text if is_media_type(text) else None
