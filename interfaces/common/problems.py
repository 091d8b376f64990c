"""Error responses as problem documents (RFC 9457), and the middleware that makes them.

Faults in a JSON body are located by a JSON Pointer (RFC 6901) or a byte position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from application.errors import (
    Conflict,
    IdempotencyKeyReused,
    NotFound,
    OutcomeUnknown,
    StorageFull,
    TooManyConflicts,
)
from application.ports.read_model import BadCursor
from application.transfers.errors import AccessEnded, ClientDisconnected, IdleTimeout
from domain.errors import (
    CommandRejected,
    FieldError,
    InvalidState,
    OutOfRange,
    StaleAttempt,
    ValidationFailed,
)
from infrastructure.database_errors import is_transient
from interfaces.common.api_types import FieldProblem, ProblemDocument
from interfaces.common.middleware import REQUEST_ID, STARTED

_AT = re.compile(r"^(?P<message>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)
_SEGMENT = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_FIELD = re.compile(r"^Object (?:contains unknown|missing required) field `(.*)`$", re.DOTALL)


def pointer_of(fault: FieldError, *, under: str = "") -> str:
    """Return the field as a JSON Pointer: `files/3/size` as `/files/3/size`."""
    return f"{under}/{fault.field}" if fault.field else under


def json_pointer_of(error: msgspec.ValidationError, *, under: str = "") -> tuple[str, str]:
    """Return the pointer and the message of msgspec's "Expected `int` - at `$.files[3].size`".

    A key of a free mapping has no name there (`[...]`): the pointer stops at the mapping.
    """
    text = str(error)
    match = _AT.match(text)
    message, path = (match["message"], match["path"].removeprefix("$")) if match else (text, "")
    path, _, _ = path.partition("[...]")
    segments = [name or index for name, index in _SEGMENT.findall(path)]
    if field := _FIELD.match(message):
        segments.append(field[1])
    return under + "".join(f"/{_escaped(segment)}" for segment in segments), message


def byte_position(body: bytes, error: ValueError) -> int:
    """Return the position of the first invalid byte of a JSON body; its length if truncated."""
    if isinstance(error, UnicodeDecodeError):
        # The decoder counts from the start of one string: look in the whole document.
        try:
            body.decode()
        except UnicodeDecodeError as error_in_document:
            return error_in_document.start
    found = re.search(r"\(byte (\d+)\)", str(error))
    return int(found[1]) if found else len(body)


def _escaped(segment: str) -> str:
    return segment.replace("~", "~0").replace("/", "~1")


CONTENT_TYPE = "application/problem+json"
RETRY_SOON = {"Retry-After": "1"}
_UNDETERMINED = (
    "whether this was recorded is not known: look, or repeat it with its Idempotency-Key"
)

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder(order="deterministic").encode


class Problem(Exception):
    """An error response; raise it anywhere under a handler, before the response has begun."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str = "",
        *,
        title: str = "",
        errors: Iterable[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        type: str = "",
        members: Mapping[str, int] | None = None,
    ) -> None:
        """Take `type` from a standard that defines a URI for the problem; `members` extend it."""
        super().__init__(detail or code)
        self.type = type or f"/problems/{code}"
        self.members = dict(members or {})
        self.status = status
        self.code = code
        self.title = title or HTTPStatus(status).phrase
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    def response(self, request: web.BaseRequest) -> web.Response:
        return web.Response(
            status=self.status,
            body=_encode({**msgspec.to_builtins(self._document(request)), **self.members}),
            content_type=CONTENT_TYPE,
            headers=self.headers,
        )

    def _document(self, request: web.BaseRequest) -> ProblemDocument:
        return ProblemDocument(
            type=self.type,
            title=self.title,
            status=self.status,
            code=self.code,
            detail=self.detail,
            errors=self.errors,
            request_id=request.get(REQUEST_ID, ""),
            instance=request.path.encode(errors="replace").decode(),
        )


_BY_TYPE: tuple[tuple[type[Exception], int, str, Mapping[str, str]], ...] = (
    (IdempotencyKeyReused, 422, "idempotency_key_reused", {}),
    (InvalidState, 409, "invalid_state", {}),
    (OutOfRange, 409, "out_of_range", {}),
    (StaleAttempt, 409, "superseded", {}),
    (CommandRejected, 409, "refused", {}),
    (TooManyConflicts, 409, "busy", RETRY_SOON),
    (Conflict, 409, "conflict", RETRY_SOON),
)


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond to every error of a handler with a problem document; log unexpected ones.

    A response that has begun cannot be replaced: its connection is closed instead, so that the
    client sees that it is incomplete.
    """
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        problem = _aiohttp_problem(error)
    except Exception as error:
        if isinstance(error, ConnectionError) and (request.get(STARTED) or _is_gone(request)):
            raise  # the connection is gone: no response can be sent
        problem = problem_of(error)
    if request.get(STARTED):
        _log.warning("response_aborted", code=problem.code, path=request.path)
        raise ConnectionResetError("the answer cannot be completed")
    return problem.response(request)


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def problem_of(error: Exception) -> Problem:
    """Return the problem for this error; an unexpected error is logged, and a 500."""
    match error:
        case Problem():
            return error
        case ValidationFailed(faults=faults):
            complaints = [FieldProblem(pointer_of(fault), fault.message) for fault in faults[:100]]
            return invalid(*complaints, total=len(faults))
        case msgspec.ValidationError():
            return invalid(FieldProblem(*json_pointer_of(error)))
        case msgspec.DecodeError():
            return Problem(400, "malformed_json", str(error))
        case BadCursor():
            return bad_parameter("cursor", "was not given out by this list")
        case NotFound():
            return not_found()
        case AccessEnded():
            return unauthenticated(str(error), error="invalid_token")
        case IdleTimeout():
            return Problem(408, "stalled", str(error))
        case ClientDisconnected() | ClientConnectionResetError():
            # Usually the connection is closed, and this is not sent.
            return Problem(400, "body_cut_short", "the connection broke before the request ended")
        case OutcomeUnknown():
            _log.error("outcome_unknown", error=str(error))
            return Problem(503, "undetermined", _UNDETERMINED, headers=RETRY_SOON)
        case StorageFull(free=free):
            members = {} if free is None else {"free": free}
            return Problem(507, "storage_full", str(error), members=members)
        case _ if is_transient(error) and not isinstance(error, OSError):
            _log.warning("unavailable", error=str(error))
            return Problem(503, "unavailable", "try again soon", headers=RETRY_SOON)
        case HttpProcessingError() | web.RequestPayloadError():
            return Problem(400, "malformed_request", "the body cannot be read as it was sent")
    for kind, status, code, headers in _BY_TYPE:
        if isinstance(error, kind):
            return Problem(status, code, str(error), headers=headers)
    _log.error("request_failed", exc_info=error)
    return Problem(500, "internal_error", "the error is logged under the request id")


def not_found() -> Problem:
    """Return a 404, the same for a missing resource and for one of another owner."""
    return Problem(404, "not_found", "this does not exist, or is not yours")


def unauthenticated(detail: str, *, error: str = "") -> Problem:
    """Return a 401 with the challenge of RFC 6750 section 3."""
    challenge = 'Bearer realm="uptrail"' + (f', error="{error}"' if error else "")
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": challenge})


def invalid(*complaints: FieldProblem, total: int | None = None) -> Problem:
    """Return a 422: the body is well-formed but invalid, and nothing was recorded."""
    count = total or len(complaints)
    first = complaints[0]
    more = f" (and {count - 1} more)" if count > 1 else ""
    return Problem(
        422, "invalid", f"{first.pointer or 'the body'}: {first.detail}{more}", errors=complaints
    )


def bad_parameter(name: str, message: str) -> Problem:
    """Return a 400 for an invalid query parameter or header."""
    return Problem(400, "bad_parameter", f"{name} {message}", errors=[FieldProblem(name, message)])


def _aiohttp_problem(error: web.HTTPException) -> Problem:
    """Return the problem for an error that aiohttp raises: no such route, a wrong method ..."""
    code = {404: "no_such_route", 405: "method_not_allowed", 413: "too_large"}.get(
        error.status, HTTPStatus(error.status).name.lower()
    )
    kept: dict[str, Any] = {
        name: value
        for name, value in error.headers.items()
        if name.lower() not in ("content-type", "content-length")
    }
    return Problem(error.status, code, error.reason, headers=kept)
