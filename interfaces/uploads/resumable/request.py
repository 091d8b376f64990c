"""What requests of the IETF's resumable uploads have in common: versions, headers, errors.

Source of the rules: draft-ietf-httpbis-resumable-upload, its texts of interop version 5, 6 and 8.
"""

from __future__ import annotations

import re

from aiohttp import web
from aiohttp.typedefs import Handler

from application.transfer.errors import ChecksumMismatch, NotIncoming, OffsetMismatch
from domain.upload.state import GONE
from interfaces.rest.problems import Problem, bad_parameter
from interfaces.services import SERVICES
from interfaces.uploads.body import HELD
from interfaces.uploads.headers import only
from interfaces.uploads.refusals import refusal_of
from interfaces.uploads.resumable.problems import (
    digest_mismatch,
    inactive,
    offset_mismatch,
)
from interfaces.uploads.tus.request import speaks_tus

INTEROP = "Upload-Draft-Interop-Version"
COMPLETE = "Upload-Complete"
OFFSET = "Upload-Offset"
LENGTH = "Upload-Length"
LIMIT = "Upload-Limit"
PARTIAL = "application/partial-upload"

VERSIONS = (5, 6, 8)

_INTEGER = re.compile(r"(\d{1,15})(?:\s*;.*)?", re.ASCII)  # RFC 9651 section 3.3.1, not negative
_BOOLEAN = re.compile(r"\?([01])(?:\s*;.*)?", re.ASCII)


def speaks_ietf(request: web.Request) -> bool:
    """Whether a request is one of this protocol: those of tus always say so themselves."""
    return not speaks_tus(request) and (INTEROP in request.headers or COMPLETE in request.headers)


def either(tus: Handler, ietf: Handler) -> Handler:
    """The handler of a path that both protocols share; who names neither is answered as by tus."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (ietf if speaks_ietf(request) else tus)(request)

    return answer


def interop_of(request: web.Request) -> int | None:
    """The version both sides speak; None where the client names none, or one we do not speak.

    Such a client is never sent 104; it is answered as the latest version has it.
    """
    version = _integer(request, INTEROP)
    return version if version in VERSIONS else None


def complete_in(request: web.Request) -> bool | None:
    """Upload-Complete; None where it is missing or no boolean, which is to be ignored."""
    found = _BOOLEAN.fullmatch(_item(request, COMPLETE))
    return found[1] == "1" if found else None


def offset_in(request: web.Request) -> int:
    """Raises a 400 Problem where there is none."""
    offset = _integer(request, OFFSET)
    if offset is None:
        raise bad_parameter(OFFSET, "must be a whole number of bytes, 0 or more")
    return offset


def length_in(request: web.Request) -> int | None:
    return _integer(request, LENGTH)


def limits(request: web.Request, *, renewed: bool = True) -> str:
    """The limits that are announced, as Upload-Limit.

    The age counts from what was last recorded: it is only told where something just was.
    """
    settings = request.app[SERVICES].settings
    if not renewed:
        return f"max-size={settings.max_file_size}"
    age = "expires" if interop_of(request) == 5 else "max-age"
    return f"max-size={settings.max_file_size}, {age}={int(settings.upload_expiry)}"


def completeness(complete: bool) -> str:
    return "?1" if complete else "?0"


def ietf_request(handler: Handler) -> Handler:
    """A handler of this protocol's requests: errors are told as its drafts have them.

    An error never completes an upload, so that each says `Upload-Complete: ?0`.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            interop_of(request)  # two of them are refused before anything is done
            response = await handler(request)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            problem = told(error)
            problem.headers.setdefault(COMPLETE, "?0")
            if problem.status == 413:
                problem.headers[LIMIT] = limits(request)
            response = problem.response(request)
        if request.get(HELD):  # the body was never asked for: what follows would be taken for it
            response.force_close()
        return response

    return answer


def told(error: Exception) -> Problem:
    """The problem for a client of this protocol."""
    match error:
        case OffsetMismatch(offset=offset, claimed=claimed):
            return offset_mismatch(offset, claimed)
        case ChecksumMismatch():
            return digest_mismatch()
        case NotIncoming(state=state) if state in GONE:
            return inactive(state)
        case Problem(status=410):
            return Problem(404, "not_found", error.detail, headers=error.headers)
    return refusal_of(error)


def _integer(request: web.Request, header: str) -> int | None:
    found = _INTEGER.fullmatch(_item(request, header))
    return int(found[1]) if found else None


def _item(request: web.Request, header: str) -> str:
    """The header as one item. Raises a 400 Problem for several that differ."""
    return (only(request, header) or "").strip()
