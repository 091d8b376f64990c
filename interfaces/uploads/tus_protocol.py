"""tus 1.0.0: version, headers, Upload-Metadata, Upload-Expires and error responses.

Source of the rules: https://tus.io/protocols/resumable-upload
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from email.utils import format_datetime

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from application.errors import NotFound
from application.transfers.receiver import ALGORITHMS, Checksum
from domain.errors import FieldError, ValidationFailed
from domain.file import (
    HEADER_KEY,
    PARTS_KEY,
    FileDeclaration,
    has_control_characters,
    is_media_type,
    path_error,
)
from domain.ids import is_partial_upload
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING, UploadState
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.requests import CONTINUE_PENDING, single_header
from interfaces.common.services import SERVICES
from interfaces.uploads.setup import is_tus_endpoint, transfer_problem

EXPIRES = "Upload-Expires"


def expires_header(
    request: web.Request, upload: Upload, since: datetime | None = None
) -> dict[str, str]:
    """Return Upload-Expires for an unfinished upload, nothing for a finished one.

    `since` is the time of its last event, None for now.
    """
    if not _is_unfinished(upload):
        return {}
    services = request.app[SERVICES]
    lifetime = timedelta(seconds=services.settings.upload_expiry)
    return {EXPIRES: format_datetime((since or services.now()) + lifetime, usegmt=True)}


async def expires_header_unrenewed(request: web.Request, upload: Upload) -> dict[str, str]:
    """Return Upload-Expires for a request that only reads, which does not extend the expiry."""
    if not _is_unfinished(upload):
        return {}
    try:
        row = await request.app[SERVICES].queries.upload(upload.id, owner=None)
    except NotFound:  # registered a moment ago
        return expires_header(request, upload)
    return expires_header(request, upload, row.updated_at)


def _is_unfinished(upload: Upload) -> bool:
    """Return whether the upload expects bytes or, for a part, its concatenation."""
    if is_partial_upload(upload.id):
        return upload.state in (*INCOMING, UploadState.RECEIVED)
    return upload.state in INCOMING


RAW_HEADER_KEY = HEADER_KEY
"""Metadata key of the whole header, stored if its pairs would not reproduce it byte for byte."""

CONCAT_METADATA_KEY = PARTS_KEY
"""Metadata key of a concatenated upload's Upload-Concat header."""

_RESERVED = (RAW_HEADER_KEY, CONCAT_METADATA_KEY)

PATH_KEYS = ("relativePath", "filename", "name")
MEDIA_TYPE_KEYS = ("filetype", "type", "content-type")


def parse(header: str) -> dict[str, str]:
    """Parse Upload-Metadata into its pairs, and the header itself if it is not canonical.

    A value that is not text is kept in the header alone. Raises ValidationFailed if that value
    would be the name of the file, or if tus does not allow the header.
    """
    pairs: dict[str, str] = {}
    problems: dict[str, str] = {}
    seen = set()
    for element in header.split(",") if header.strip() else ():
        key, _, encoded = element.strip().partition(" ")
        if not key or not key.isascii() or key in seen:
            raise _invalid_metadata("must have unique, non-empty ASCII keys")
        seen.add(key)
        text, problem = _text(encoded)
        if problem:
            problems[key] = problem
        elif key not in _RESERVED:
            pairs[key] = text
    if problems:
        named = next((key for key in PATH_KEYS if key in problems or _path_under(key, pairs)), "")
        if named in problems:
            raise ValidationFailed(FieldError(f"Upload-Metadata/{named}", problems[named]))
    if header and format(pairs) != header:
        pairs[RAW_HEADER_KEY] = header
    return pairs


def format(metadata: Mapping[str, str]) -> str:
    """Return the header to echo: as it was sent, or made from metadata of another origin."""
    if RAW_HEADER_KEY in metadata:
        return metadata[RAW_HEADER_KEY]
    return ",".join(
        f"{key} {b64encode(value.encode()).decode()}" if value else key
        for key, value in metadata.items()
        if key != CONCAT_METADATA_KEY
        and key.isascii()
        and key.isprintable()
        and " " not in key
        and "," not in key
    )


def declaration(
    metadata: dict[str, str], size: int | None, *, default: Callable[[], str]
) -> FileDeclaration:
    """Return the file that the metadata describes; `default` makes a path if the metadata has none.

    Raises ValidationFailed for a name that no file may have.
    """
    for key in PATH_KEYS:
        if path := _path_under(key, metadata):
            if problem := path_error(path):
                raise ValidationFailed(FieldError(f"Upload-Metadata/{key}", problem))
            break
    else:
        path = default()
    return FileDeclaration(
        path=path,
        size=size,
        media_type=_media_type(metadata),
        checksum=_checksum(metadata),
        metadata=metadata,
    )


def _path_under(key: str, metadata: Mapping[str, str]) -> str:
    """Return the file's path from the pair of this key; empty if the pair has none."""
    value = metadata.get(key, "")
    # Uppy sends "null" for a file without a folder, and a slash before one with a folder.
    if key == "relativePath":
        return "" if value == "null" else value.removeprefix("/")
    return value


def _media_type(metadata: dict[str, str]) -> str | None:
    """Return the first valid media type: clients pass on anything that the browser reports."""
    for key in MEDIA_TYPE_KEYS:
        value = metadata.get(key)
        if value and is_media_type(value):
            return value
    return None


def _checksum(metadata: dict[str, str]) -> str | None:
    value = metadata.get("checksum", "")
    return value if value.startswith("sha256:") else None


def _text(encoded: str) -> tuple[str, str]:
    """Decode a value. Return it and the reason for which it is not text; one of them is empty."""
    try:
        text = b64decode(encoded.strip(), validate=True).decode()
    except NotBase64:
        raise _invalid_metadata("must have values in Base64") from None
    except UnicodeDecodeError:
        return "", "must be UTF-8"
    if has_control_characters(text):
        return "", path_error(text) or "must not hold control characters"
    return text, ""


def _invalid_metadata(message: str) -> ValidationFailed:
    return ValidationFailed(FieldError("Upload-Metadata", message))


VERSION = "1.0.0"
EXTENSIONS = (
    "creation,creation-with-upload,creation-defer-length,checksum,concatenation,expiration,"
    "termination"
)
CONTENT_TYPE = "application/offset+octet-stream"

RESUMABLE = "Tus-Resumable"
OFFSET = "Upload-Offset"
LENGTH = "Upload-Length"
DEFER = "Upload-Defer-Length"
METADATA = "Upload-Metadata"
CHECKSUM = "Upload-Checksum"
CONCAT = "Upload-Concat"
OVERRIDE = "X-HTTP-Method-Override"


def is_tus(request: web.Request) -> bool:
    """Return whether a request uses tus, on a path that tus shares with other protocols."""
    return RESUMABLE in request.headers


def tus_handler(handler: Handler) -> Handler:
    """Wrap a handler of tus requests: check the version, respond to errors as clients expect."""

    async def wrapped(request: web.Request) -> web.StreamResponse:
        try:
            if single_header(request, RESUMABLE) != VERSION and not _may_omit_version(request):
                detail = f"this server speaks {RESUMABLE}: {VERSION}"
                raise Problem(412, "tus_version", detail, headers={"Tus-Version": VERSION})
            response = await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            response = transfer_problem(error).response(request)
        response.headers[RESUMABLE] = VERSION
        if request.get(CONTINUE_PENDING):
            # The client may or may not send the body now: the next bytes are ambiguous.
            response.force_close()
        return response

    return wrapped


def _may_omit_version(request: web.Request) -> bool:
    """Return whether the request may omit the version: tusd allows HEAD, for general clients."""
    reads_offset = request.method == hdrs.METH_HEAD and is_tus_endpoint(request)
    return reads_offset and RESUMABLE not in request.headers


def parse_length(request: web.Request, header: str) -> int | None:
    """Parse a header that counts bytes. Raises a 400 Problem unless it is one decimal number."""
    text = single_header(request, header)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise bad_parameter(header, "must be a whole number of bytes, 0 or more")
    return int(text)


def parse_metadata(request: web.Request) -> dict[str, str]:
    """Parse Upload-Metadata. Raises ValidationFailed; Problem (400) beyond `max_metadata` bytes."""
    header, limit = (
        single_header(request, METADATA) or "",
        request.app[SERVICES].settings.max_metadata,
    )
    if len(header) > limit:
        raise bad_parameter(METADATA, f"must be at most {limit} bytes, not {len(header)}")
    return parse(header)


def parse_checksum(request: web.Request) -> Checksum | None:
    """Parse Upload-Checksum. Raises a 400 Problem if malformed or of an unsupported algorithm."""
    header = single_header(request, CHECKSUM)
    if header is None:
        return None
    algorithm, _, encoded = header.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise bad_parameter(CHECKSUM, f"must be of {', '.join(ALGORITHMS)}")
    try:
        digest = b64decode(encoded, validate=True)
    except NotBase64:
        raise bad_parameter(CHECKSUM, "must be in Base64") from None
    if len(digest) != len(ALGORITHMS[algorithm]().digest()):
        raise bad_parameter(CHECKSUM, f"is not as long as {algorithm} is")
    return Checksum(algorithm, digest)
