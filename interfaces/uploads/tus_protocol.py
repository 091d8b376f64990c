"""Until when an unfinished upload is kept: `Upload-Expires` of the tus extension expiration.

Source of the rules: https://tus.io/protocols/resumable-upload, section Expiration.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
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
    path_error,
    validate_declaration,
)
from domain.ids import is_partial_upload
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING, UploadState
from interfaces.common.body import CONTINUE_PENDING, single_header
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.services import SERVICES
from interfaces.uploads.setup import is_tus_endpoint, transfer_problem

EXPIRES = "Upload-Expires"


def expires_header(
    request: web.Request, upload: Upload, since: datetime | None = None
) -> dict[str, str]:
    """The header for an upload that waits for bytes; nothing for one that has them all.

    `since` is when something was last recorded of it, None for just now.
    """
    if not _waits(upload):
        return {}
    services = request.app[SERVICES]
    kept = timedelta(seconds=services.settings.upload_expiry)
    return {EXPIRES: format_datetime((since or services.now()) + kept, usegmt=True)}


async def expires_header_unrenewed(request: web.Request, upload: Upload) -> dict[str, str]:
    """The same where only a question was asked, which does not make the upload live longer."""
    if not _waits(upload):
        return {}
    try:
        row = await request.app[SERVICES].queries.upload(upload.id, owner=None)
    except NotFound:  # registered a moment ago
        return expires_header(request, upload)
    return expires_header(request, upload, row.updated_at)


def _waits(upload: Upload) -> bool:
    """For bytes, or, being a part, to be joined with others."""
    if is_partial_upload(upload.id):
        return upload.state in (*INCOMING, UploadState.RECEIVED)
    return upload.state in INCOMING


# Upload-Metadata of tus 1.0.0: what it says of a file, kept so that it can be echoed exactly.

RAW = HEADER_KEY
"""The key under which a header is kept that its pairs alone would not give back byte for byte."""

CONCAT_METADATA_KEY = PARTS_KEY
"""The key under which an upload that was joined from parts keeps the header that named them."""

_RESERVED = (RAW, CONCAT_METADATA_KEY)

PATHS = ("relativePath", "filename", "name")
MEDIA_TYPES = ("filetype", "type", "content-type")


def parse(header: str) -> dict[str, str]:
    """The pairs of the header, and the header itself if it is not their canonical form.

    A value that is not text is left to the header, unless it would be the name of the file: that
    is refused. Raises ValidationFailed, also for what tus does not allow.
    """
    pairs: dict[str, str] = {}
    problems: dict[str, str] = {}
    seen = set()
    for element in header.split(",") if header.strip() else ():
        key, _, encoded = element.strip().partition(" ")
        if not key or not key.isascii() or key in seen:
            raise _faulty("must have unique, non-empty ASCII keys")
        seen.add(key)
        text, problem = _text(encoded)
        if problem:
            problems[key] = problem
        elif key not in _RESERVED:
            pairs[key] = text
    named = next((key for key in PATHS if key in problems or _path_under(key, pairs)), "")
    if named in problems:
        raise ValidationFailed(FieldError(f"Upload-Metadata/{named}", problems[named]))
    if header and format(pairs) != header:
        pairs[RAW] = header
    return pairs


def format(metadata: Mapping[str, str]) -> str:
    """The header to echo: as it was sent, or made from metadata that came another way."""
    if RAW in metadata:
        return metadata[RAW]
    return ",".join(
        f"{key} {b64encode(value.encode()).decode()}" if value else key
        for key, value in metadata.items()
        if key != CONCAT_METADATA_KEY
        and key.isascii()
        and key.isprintable()
        and not set(key) & set(" ,")
    )


def declaration(metadata: dict[str, str], size: int | None, *, default: str) -> FileDeclaration:
    """The file that the metadata describes; `default` is its path where it names none.

    Raises ValidationFailed for a name that no file may have.
    """
    key = next((key for key in PATHS if _path_under(key, metadata)), None)
    path = _path_under(key, metadata) if key else default
    if key and (problem := path_error(path)):
        raise ValidationFailed(FieldError(f"Upload-Metadata/{key}", problem))
    return FileDeclaration(
        path=path,
        size=size,
        media_type=_media_type(metadata),
        checksum=_checksum(metadata),
        metadata=metadata,
    )


def path_from_metadata(metadata: dict[str, str]) -> str | None:
    """What the metadata calls the file; None where it says nothing."""
    return next((path for key in PATHS if (path := _path_under(key, metadata))), None)


def _path_under(key: str, metadata: Mapping[str, str]) -> str:
    """Return the file's path from the pair of this key; empty if the pair has none."""
    value = metadata.get(key, "")
    # Uppy sends "null" for a file without a folder, and a slash before one with a folder.
    if key == "relativePath":
        return "" if value == "null" else value.removeprefix("/")
    return value


def _media_type(metadata: dict[str, str]) -> str | None:
    """The first that is sound: clients put whatever the browser says here."""
    for key in MEDIA_TYPES:
        value = metadata.get(key)
        if value and not any(validate_declaration(FileDeclaration(path="-", media_type=value))):
            return value
    return None


def _checksum(metadata: dict[str, str]) -> str | None:
    value = metadata.get("checksum", "")
    return value if value.startswith("sha256:") else None


def _text(encoded: str) -> tuple[str, str]:
    """A value, and why it is none that is kept as text; either is empty."""
    try:
        text = b64decode(encoded.strip(), validate=True).decode()
    except NotBase64:
        raise _faulty("must have values in Base64") from None
    except UnicodeDecodeError:
        return "", "must be UTF-8"
    if has_control_characters(text):
        return "", path_error(text) or "must not hold control characters"
    return text, ""


def _faulty(message: str) -> ValidationFailed:
    return ValidationFailed(FieldError("Upload-Metadata", message))


# What every request of tus 1.0.0 has in common: names, the version, and how errors are told.
#
# Source of the rules: https://tus.io/protocols/resumable-upload

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
    """Whether a request to a path that tus shares with our own API is one of tus."""
    return RESUMABLE in request.headers


def tus_handler(handler: Handler) -> Handler:
    """A handler of tus requests: checks the version, and tells errors so that clients act well."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            if single_header(request, RESUMABLE) != VERSION and not _may_be_no_client(request):
                detail = f"this server speaks {RESUMABLE}: {VERSION}"
                raise Problem(412, "tus_version", detail, headers={"Tus-Version": VERSION})
            response = await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            response = transfer_problem(error).response(request)
        response.headers[RESUMABLE] = VERSION
        if request.get(
            CONTINUE_PENDING
        ):  # the body was never asked for: what follows would be taken for it
            response.force_close()
        return response

    return answer


def _may_be_no_client(request: web.Request) -> bool:
    """Whether to answer without a version: tusd does a HEAD, by which programs look at a file."""
    reads_offset = request.method == hdrs.METH_HEAD and is_tus_endpoint(request)
    return reads_offset and RESUMABLE not in request.headers


def parse_length(request: web.Request, header: str) -> int | None:
    """A header that counts bytes. Raises a 400 Problem unless it is digits alone, said once."""
    text = single_header(request, header)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise bad_parameter(header, "must be a whole number of bytes, 0 or more")
    return int(text)


def metadata_in(request: web.Request) -> dict[str, str]:
    """Upload-Metadata. Raises ValidationFailed; Problem (400) for one beyond `max_metadata`."""
    header, limit = (
        single_header(request, METADATA) or "",
        request.app[SERVICES].settings.max_metadata,
    )
    if len(header) > limit:
        raise bad_parameter(METADATA, f"must be at most {limit} bytes, not {len(header)}")
    return parse(header)


def parse_checksum(request: web.Request) -> Checksum | None:
    """Upload-Checksum. Raises a 400 Problem for what is none, or of an algorithm unknown here."""
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
