"""Content-Digest and Repr-Digest (RFC 9530), of the algorithms that are safe."""

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

from application.transfers.errors import ChecksumMismatch, NotAcceptingBytes, OffsetMismatch
from application.transfers.receiver import Checksum
from domain.errors import FieldError, ValidationFailed
from domain.file import FileDeclaration, path_error, validate_declaration
from domain.upload.state import GONE, UploadState
from interfaces.common.body import CONTINUE_PENDING, single_header
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.requests import Query
from interfaces.common.services import SERVICES
from interfaces.uploads import tus_protocol
from interfaces.uploads.multipart import UNREADABLE_PARAMETERS, file_name, header_parameters
from interfaces.uploads.setup import is_tus_endpoint, transfer_problem
from interfaces.uploads.tus_protocol import is_tus, metadata_in

# The problem types that the IETF's drafts on uploads and digests define.
#
# Sources: draft-ietf-httpbis-resumable-upload, its section on problem types (completed-upload up
# to interop version 6), and draft-ietf-httpapi-digest-fields-problem-types.

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
    """404, as interop version 5 demands of an upload that is none any more."""
    return Problem(404, "not_found", f"the upload is {state}")


CONTENT_DIGEST = "Content-Digest"
REPR_DIGEST = "Repr-Digest"

_SIZES = {"sha-256": 32, "sha-512": 64}  # bytes of a digest
_MEMBER = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):\s*", re.ASCII)


def parse_digest(request: web.Request, header: str) -> Checksum | None:
    """A digest that we can check, sha-256 first; None without the header.

    Raises a 400 Problem where there is none we can check: it was sent to be checked.
    """
    text = ",".join(request.headers.getall(header, []))
    if not text.strip():
        return None
    found = dict(_member(header, text) for text in text.split(","))
    for name in _SIZES:
        if name in found:
            return Checksum(name.replace("-", ""), _decoded(header, name, found[name]))
    raise unsupported_digest(" or ".join(_SIZES))


def declaration_checksum(digest: Checksum | None) -> str | None:
    """As the checksum of a declaration, which the pipeline holds the whole file against."""
    if digest is None or digest.algorithm != "sha256":
        return None
    return f"sha256:{digest.digest.hex()}"


def _member(header: str, text: str) -> tuple[str, str]:
    found = _MEMBER.fullmatch(text)
    if found is None:
        raise invalid_digest(header)
    return found[1], found[2]


def _decoded(header: str, algorithm: str, text: str) -> bytes:
    try:
        digest = b64decode(text, validate=True)
    except NotBase64:
        raise invalid_digest(header) from None
    if len(digest) != _SIZES[algorithm]:
        raise invalid_digest(header)
    return digest


# What requests of the IETF's resumable uploads have in common: versions, headers, errors.
#
# Source of the rules: draft-ietf-httpbis-resumable-upload, its texts of interop version 5, 6 and
# 8.

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
    """Whether a request is one of this protocol: those of tus always say so themselves."""
    return not is_tus(request) and (INTEROP in request.headers or COMPLETE in request.headers)


def dispatch_protocol(tus: Handler, ietf: Handler) -> Handler:
    """The handler of a path that both protocols share; who names neither is answered as by tus."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (ietf if is_ietf(request) else tus)(request)

    return answer


def interop_version(request: web.Request) -> int | None:
    """The version both sides speak; None where the client names none, or one we do not speak.

    Such a client is never sent 104; it is answered as the latest version has it.
    """
    version = _integer(request, INTEROP)
    return version if version in VERSIONS else None


def parse_upload_complete(request: web.Request) -> bool | None:
    """Upload-Complete; None where it is missing or no boolean, which is to be ignored."""
    found = _BOOLEAN.fullmatch(_item(request, COMPLETE))
    return found[1] == "1" if found else None


def parse_offset(request: web.Request) -> int:
    """Raises a 400 Problem where there is none."""
    offset = _integer(request, OFFSET)
    if offset is None:
        raise bad_parameter(OFFSET, "must be a whole number of bytes, 0 or more")
    return offset


def parse_length(request: web.Request) -> int | None:
    return _integer(request, LENGTH)


def limits(request: web.Request, *, renewed: bool = True) -> str:
    """The limits that are announced, as Upload-Limit.

    The age counts from what was last recorded: it is only told where something just was.
    """
    settings = request.app[SERVICES].settings
    if not renewed:
        return f"max-size={settings.max_file_size}"
    age = "expires" if interop_version(request) == 5 else "max-age"
    return f"max-size={settings.max_file_size}, {age}={int(settings.upload_expiry)}"


def upload_complete_header(complete: bool) -> str:
    return "?1" if complete else "?0"


def ietf_request(handler: Handler) -> Handler:
    """A handler of this protocol's requests: errors are told as its drafts have them.

    An error never completes an upload, so that each says `Upload-Complete: ?0`.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            interop_version(request)  # two of them are refused before anything is done
            response = await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            problem = ietf_problem(error)
            problem.headers.setdefault(COMPLETE, "?0")
            if problem.status == 413:
                problem.headers[LIMIT] = limits(request)
            response = problem.response(request)
        if request.get(
            CONTINUE_PENDING
        ):  # the body was never asked for: what follows would be taken for it
            response.force_close()
        return response

    return answer


def ietf_problem(error: Exception) -> Problem:
    """The problem for a client of this protocol."""
    match error:
        case OffsetMismatch(offset=offset, claimed=claimed):
            return offset_mismatch(offset, claimed)
        case ChecksumMismatch():
            return digest_mismatch()
        case NotAcceptingBytes(state=state) if state in GONE:
            return inactive(state)
        case Problem(status=410):
            return Problem(404, "not_found", error.detail, headers=error.headers)
    return transfer_problem(error)


def _integer(request: web.Request, header: str) -> int | None:
    found = _INTEGER.fullmatch(_item(request, header))
    return int(found[1]) if found else None


def _item(request: web.Request, header: str) -> str:
    """The header as one item. Raises a 400 Problem for several that differ."""
    return (single_header(request, header) or "").strip()


# 104 (Upload Resumption Supported): where an upload is, and how far, while its body arrives.

EVERY = 1.0  # seconds between two words on how far it is, at least


PROXIED = (
    "Via",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Real-IP",
)
"""Headers that show a proxy: nginx takes 104 for the final response, Go fails after five."""


def is_carried(request: web.Request) -> bool:
    """Whether an interim response reaches the client, by the setting `interim_responses`.

    `auto` sends none where a proxy is in front, by the settings or by what the request shows.
    """
    settings = request.app[SERVICES].settings
    if settings.interim_responses != "auto":
        return settings.interim_responses == "on"
    return not settings.trust_forwarded and not any(name in request.headers for name in PROXIED)


async def send_104(request: web.Request, location: str) -> None:
    """Tells the client where the upload is, so that it can go on after a cut."""
    await _send(request, {hdrs.LOCATION: location, LIMIT: limits(request)})


async def with_104_progress(
    request: web.Request, upload: UUID, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """The chunks; now and then the client is told how much of them is durable and recorded."""
    loop = asyncio.get_running_loop()
    due, told = loop.time() + EVERY, 0
    async for chunk in chunks:
        yield chunk
        if loop.time() >= due:
            due = loop.time() + EVERY
            received = (await request.app[SERVICES].log.upload(upload)).received
            if received > told:
                told = received
                await _send(request, {OFFSET: str(received)})


async def _send(request: web.Request, headers: dict[str, str]) -> None:
    """Nothing to a client of another version, as all drafts demand, nor to one of HTTP/1.0."""
    version = interop_version(request)
    if version is None or request.version < HttpVersion11 or not is_carried(request):
        return
    lines = [f"{name}: {value}" for name, value in {INTEROP: str(version), **headers}.items()]
    head = "\r\n".join(["HTTP/1.1 104 Upload Resumption Supported", *lines, "", ""])
    await request.writer.write(head.encode("latin-1"))
    request.writer.output_size = 0  # the answer proper has not begun


# What the creation of an IETF upload says of its file: path, media type, metadata.

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
    file = tus_protocol.declaration(said, size, default=default)
    return FileDeclaration(
        path=_path(request) or _filename(request) or file.path,
        size=size,
        media_type=_media_type(request) or file.media_type,
        checksum=declaration_checksum(digest) or file.checksum,
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
    header = single_header(request, hdrs.CONTENT_DISPOSITION)
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
