"""What every request of tus 1.0.0 has in common: names, the version, and how errors are told.

Source of the rules: https://tus.io/protocols/resumable-upload
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as NotBase64

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from application.transfer.checksums import ALGORITHMS, Checksum
from interfaces.rest.problems import Problem, bad_parameter
from interfaces.services import SERVICES
from interfaces.uploads.body import HELD
from interfaces.uploads.endpoints import is_tus_endpoint
from interfaces.uploads.headers import only
from interfaces.uploads.refusals import refusal_of
from interfaces.uploads.tus import metadata

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


def speaks_tus(request: web.Request) -> bool:
    """Whether a request to a path that tus shares with our own API is one of tus."""
    return RESUMABLE in request.headers


def tus_request(handler: Handler) -> Handler:
    """A handler of tus requests: checks the version, and tells errors so that clients act well."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            if only(request, RESUMABLE) != VERSION and not _may_be_no_client(request):
                detail = f"this server speaks {RESUMABLE}: {VERSION}"
                raise Problem(412, "tus_version", detail, headers={"Tus-Version": VERSION})
            response = await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            response = refusal_of(error).response(request)
        response.headers[RESUMABLE] = VERSION
        if request.get(HELD):  # the body was never asked for: what follows would be taken for it
            response.force_close()
        return response

    return answer


def _may_be_no_client(request: web.Request) -> bool:
    """Whether to answer without a version: tusd does a HEAD, by which programs look at a file."""
    reads_offset = request.method == hdrs.METH_HEAD and is_tus_endpoint(request)
    return reads_offset and RESUMABLE not in request.headers


def number_in(request: web.Request, header: str) -> int | None:
    """A header that counts bytes. Raises a 400 Problem unless it is digits alone, said once."""
    text = only(request, header)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise bad_parameter(header, "must be a whole number of bytes, 0 or more")
    return int(text)


def metadata_in(request: web.Request) -> dict[str, str]:
    """Upload-Metadata. Raises ValidationFailed; Problem (400) for one beyond `max_metadata`."""
    header, limit = only(request, METADATA) or "", request.app[SERVICES].settings.max_metadata
    if len(header) > limit:
        raise bad_parameter(METADATA, f"must be at most {limit} bytes, not {len(header)}")
    return metadata.parse(header)


def checksum_in(request: web.Request) -> Checksum | None:
    """Upload-Checksum. Raises a 400 Problem for what is none, or of an algorithm unknown here."""
    header = only(request, CHECKSUM)
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
