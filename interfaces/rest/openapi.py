"""The OpenAPI 3.1 document: the operations that the router uses, and the requests that webhooks
receive."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from application.ports.auth import Scope
from application.views import BatchView
from domain.webhook.events import DELIVERED_TOPICS
from interfaces.common.api_types import ProblemDocument, PublicUpload
from interfaces.common.idempotency import HEADER
from interfaces.common.operations import Operation
from interfaces.common.problems import CONTENT_TYPE
from interfaces.common.requests import LATEST
from interfaces.common.responses import POSITION

WEBHOOK_HEADERS = {
    "webhook-id": "id of the delivery, the same in every try",
    "webhook-timestamp": "time of sending, in seconds since 1970",
    "webhook-signature": "`v1,` and a signature by each active secret, separated by blanks",
}


class Links(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """URLs of the API for more about it."""

    batch: str
    report: str
    upload: str | None = None


class BatchPayload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of the event at this position, and the batch as of this position."""

    position: int
    event: dict[str, Any]
    batch: BatchView
    links: Links


class UploadPayload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of the event at this position, and the upload as of this position."""

    position: int
    event: dict[str, Any]
    upload: PublicUpload  # type: ignore[valid-type]
    links: Links


class BatchMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a request about a batch."""

    type: str
    timestamp: datetime
    data: BatchPayload


class UploadMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a request about an upload."""

    type: str
    timestamp: datetime
    data: UploadPayload


MESSAGES = (BatchMessage, UploadMessage)


def webhook_schemas(schema_of: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the request for each event that a webhook may choose."""
    return {topic: {"post": _webhook_schema(topic, schema_of)} for topic in DELIVERED_TOPICS}


def _webhook_schema(topic: str, schema_of: dict[str, Any]) -> dict[str, Any]:
    message = BatchMessage if topic.startswith("batch.") else UploadMessage
    return {
        "operationId": f"webhook_{topic.replace('.', '_')}",
        "summary": f"Request to a webhook that chose {topic}",
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text}
            | {"schema": {"type": "string"}}
            for name, text in WEBHOOK_HEADERS.items()
        ],
        "requestBody": {"content": {"application/json": {"schema": schema_of[repr(message)]}}},
        "responses": {"2XX": {"description": "Received: the event is not sent again"}},
        "security": [],
    }


DOCUMENT: web.AppKey[bytes] = web.AppKey("openapi", bytes)

_REF = "#/components/schemas/{name}"
_QUERY: dict[str, dict[str, Any]] = {
    "at": {
        "schema": {"type": "string"},
        "description": "a position of the log, or a time with its zone: the state as of then",
    },
    "after": {
        "schema": {"type": "integer", "minimum": 0},
        "description": "events beyond this position",
    },
    "before": {
        "schema": {"type": "integer", "minimum": 1},
        "description": "the last events before this position; `next` goes into it again",
    },
    "limit": {"schema": {"type": "integer", "minimum": 1}},
    "min_position": {
        "schema": {"oneOf": [{"type": "integer", "minimum": 0}, {"const": LATEST}]},
        "description": "wait, a few seconds, until the answer reflects this position, or with"
        " `latest` whatever was recorded before the request; then it is a 504",
    },
    "format": {"schema": {"enum": ["json", "ndjson"]}},
    "only": {"schema": {"enum": ["failed"]}, "description": "failed, quarantined and rejected"},
}


async def show_document(request: web.Request) -> web.Response:
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


def install_document(app: web.Application, operations: Sequence[Operation]) -> None:
    """Encode the document once, for `show_document` to return."""
    app[DOCUMENT] = msgspec.json.encode(openapi(operations))


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of these operations."""
    types = [*_body_types(operations), ProblemDocument, *MESSAGES]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _describe_operation(operation, schema_of)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "Uptrail", "version": "1", "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {"session": []}],
        "paths": paths,
        "webhooks": webhook_schemas(schema_of),
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "uptrail_session"},
            },
        },
    }


def _body_types(operations: Iterable[Operation]) -> Iterable[Any]:
    """Return each type of a request or response body once."""
    found = {}
    for operation in operations:
        for type in (operation.body, *operation.responses.values()):
            if type is not None:
                found[repr(type)] = type
    return found.values()


def _describe_operation(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    responses = {
        str(status): _describe_response(status, type, operation.media, schema_of)
        for status, type in operation.responses.items()
    }
    responses["default"] = {
        "description": "A problem (RFC 9457)",
        "content": {CONTENT_TYPE: {"schema": schema_of[repr(ProblemDocument)]}},
    }
    described: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "parameters": _describe_parameters(operation),
        "responses": responses,
    }
    if operation.scopes:
        described["description"] = (
            f"For the scopes {', '.join(sorted({*operation.scopes, Scope.ADMIN}))}."
        )
    else:
        described["security"] = []
    if operation.body is not None:
        described["requestBody"] = {
            "content": {"application/json": {"schema": schema_of[repr(operation.body)]}}
        }
    return described


def _describe_response(
    status: int, type: Any, media: str, schema_of: dict[str, Any]
) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if type is not None:
        response["content"] = {media: {"schema": schema_of[repr(type)]}}
        response["headers"] = {POSITION: {"schema": {"type": "string"}}}
    return response


def _describe_parameters(operation: Operation) -> list[dict[str, Any]]:
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    asked = [
        {"name": name, "in": "query", **_QUERY.get(name, {"schema": {"type": "string"}})}
        for name in operation.query
    ]
    key = {"name": HEADER, "in": "header", "schema": {"type": "string", "maxLength": 255}}
    return [*named, *asked, *([key] if operation.idempotent else [])]


def _operation_id(operation: Operation) -> str:
    """Return an operationId such as `post_v1_batches_id_seal`."""
    return re.sub(r"\W+", "_", f"{operation.method.lower()}{operation.path}").strip("_")


OPERATIONS = (
    Operation(
        method="GET",
        path="/openapi.json",
        handler=show_document,
        summary="This description",
        scopes=(),
        responses={200: dict[str, Any]},
    ),
)
