"""`/asyncapi.json`: description of the feed, generated from the types of its messages.

Source of the format: https://www.asyncapi.com/docs/reference/specification/v3.0.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from application.views import AttemptView, BatchView
from interfaces.common.access import SESSION_COOKIE
from interfaces.common.api_types import PublicUpload
from interfaces.common.operations import Operation
from interfaces.feed.protocol import (
    ENCODINGS,
    Authenticate,
    AuthenticateRequest,
    ChangesHead,
    CloseCode,
    Error,
    Expiring,
    Heartbeat,
    Ping,
    Pong,
    PongFrame,
    Reset,
    SnapshotHead,
    StreamEnd,
    Subscribe,
    Welcome,
)


class Snapshot(SnapshotHead, frozen=True, tag="snapshot"):
    """Rows as they are; part 1 replaces everything the client has. The last part has the cursor."""

    batches: list[BatchView]
    uploads: list[PublicUpload]  # type: ignore[valid-type]
    attempts: list[AttemptView]


class Changes(ChangesHead, frozen=True, tag="changes"):
    """Rows that changed: applied if and only if `from` <= the client's position < `to`."""

    batches: list[BatchView]
    uploads: list[PublicUpload]  # type: ignore[valid-type]
    attempts: list[AttemptView]


_COMMON_FRAMES = (Welcome, Snapshot, Changes, Reset, Error, Expiring)
WEBSOCKET_FRAMES = (*_COMMON_FRAMES, AuthenticateRequest, Heartbeat, PongFrame)
STREAM_FRAMES = (*_COMMON_FRAMES, StreamEnd)
CLIENT_MESSAGES = (Authenticate, Subscribe, Ping, Pong)

_SECURITY: dict[str, Any] = {
    "key": {"type": "http", "scheme": "bearer"},
    "session": {"type": "httpApiKey", "in": "cookie", "name": SESSION_COOKIE},
}
_QUERY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "batches": {"type": "string", "description": "ids with commas between them, or *"},
        "after": {"type": "string", "description": "the cursor of the last frame applied"},
        "min_position": {
            "type": "string",
            "description": "a position, or latest: no rows before they reflect it, or a 504",
        },
    },
}


async def document(request: web.Request) -> web.Response:
    return web.Response(body=_DOCUMENT, content_type="application/json")


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3 document of the feed."""
    types: tuple[type[msgspec.Struct], ...] = tuple(
        dict.fromkeys((*WEBSOCKET_FRAMES, *STREAM_FRAMES, *CLIENT_MESSAGES))
    )
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Uptrail: the feed", "version": "1", "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/json",
        "servers": {"socket": _server("ws"), "stream": _server("http")},
        "channels": {"socket": _socket(), "stream": _stream()},
        "operations": {
            "sendFrame": _operation(
                "send", "socket", WEBSOCKET_FRAMES, "Frames that the server sends on a WebSocket"
            ),
            "receiveMessage": _operation(
                "receive",
                "socket",
                CLIENT_MESSAGES,
                "Messages that a client may send on a WebSocket",
            ),
            "stream": _operation("send", "stream", STREAM_FRAMES, "The same as Server-Sent Events")
            | {
                "bindings": {
                    "http": {"method": "GET", "query": _QUERY_SCHEMA, "bindingVersion": "0.3.0"}
                }
            },
        },
        "components": {
            "schemas": schemas,
            "messages": {_name(type): _message(type) for type in types},
            "securitySchemes": _SECURITY,
        },
    }


def _server(protocol: str) -> dict[str, Any]:
    return {
        "host": "{address}",
        "protocol": protocol,
        "variables": {"address": {"default": "127.0.0.1:8080"}},
        "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SECURITY],
    }


def _socket() -> dict[str, Any]:
    languages = {"type": "string", "enum": list(ENCODINGS)}
    headers = {"type": "object", "properties": {"Sec-WebSocket-Protocol": languages}}
    return {
        **_channel(
            "socket",
            (*WEBSOCKET_FRAMES, *CLIENT_MESSAGES),
            "A WebSocket; the subprotocol chooses the encoding",
        ),
        "bindings": {"ws": {"method": "GET", "headers": headers, "bindingVersion": "0.1.0"}},
        "x-close-codes": {str(int(code)): code.name.lower() for code in CloseCode},
    }


def _stream() -> dict[str, Any]:
    return _channel("stream", STREAM_FRAMES, "Server-Sent Events, with Accept: text/event-stream")


def _channel(server: str, types: Iterable[type], summary: str) -> dict[str, Any]:
    return {
        "address": "/v1/feed",
        "summary": summary,
        "servers": [{"$ref": f"#/servers/{server}"}],
        "messages": {
            _name(type): {"$ref": f"#/components/messages/{_name(type)}"} for type in types
        },
    }


def _operation(action: str, channel: str, types: Iterable[type], summary: str) -> dict[str, Any]:
    reference = f"#/channels/{channel}"
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": reference},
        "messages": [{"$ref": f"{reference}/messages/{_name(type)}"} for type in types],
    }


def _message(type: type[msgspec.Struct]) -> dict[str, Any]:
    summary, _, more = (type.__doc__ or "").partition("\n\n")
    described = {"description": " ".join(more.split())} if more else {}
    return {
        "name": str(type.__struct_config__.tag),
        "summary": " ".join(summary.split()),
        **described,
        "payload": {"$ref": f"#/components/schemas/{_name(type)}"},
    }


def _name(type: type) -> str:
    return type.__name__


_DOCUMENT = msgspec.json.encode(asyncapi())

OPERATIONS = (
    Operation(
        method="GET",
        path="/asyncapi.json",
        handler=document,
        summary="The description of the feed",
        scopes=(),
        responses={200: dict[str, Any]},
    ),
)
