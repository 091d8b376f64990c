"""Table of API operations, from which the router, the OpenAPI document and the tests are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from application.ports.auth import Scope
from interfaces.common.requests import defer_100_continue

ANY_SCOPE: tuple[Scope, ...] = tuple(Scope)
UPLOAD_SCOPES = (Scope.OPERATOR, Scope.UPLOADER)
OPERATOR_SCOPES = (Scope.OPERATOR,)
ADMIN_SCOPES = (Scope.ADMIN,)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A method on a path, and its contract.

    `responses` has the type of the body by status (None: no body), `query` the parameters' names.
    `media` is the media type of a successful response, `scopes` are those allowed (none: public).
    """

    method: str
    path: str
    handler: Handler
    summary: str
    responses: dict[int, Any]
    body: Any = None
    query: tuple[str, ...] = ()
    scopes: tuple[Scope, ...] = ANY_SCOPE
    idempotent: bool = False
    media: str = "application/json"


def add_operations(app: web.Application, operations: Sequence[Operation]) -> None:
    for operation in operations:
        expect = defer_100_continue if operation.body is not None else None
        app.router.add_route(
            operation.method, operation.path, operation.handler, expect_handler=expect
        )
        if operation.method == "GET" and operation.path not in NO_HEAD:
            app.router.add_route("HEAD", operation.path, operation.handler)
    for operation in operations:
        if operation.path in WITH_SLASH:
            expect = defer_100_continue if operation.body is not None else None
            path = f"{operation.path}/"
            app.router.add_route(operation.method, path, operation.handler, expect_handler=expect)


# Clients of tus add a slash to an endpoint, or keep it in a URL they were given.
WITH_SLASH = frozenset({"/v1/uploads/{id}", "/v1/batches/{id}/uploads"})
# HEAD of an upload belongs to tus; one-time links must be used up by GET alone.
NO_HEAD = frozenset({"/v1/uploads/{id}", "/login", "/v1/callbacks/{token}/content"})
