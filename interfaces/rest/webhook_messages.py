"""Schemas of the requests that webhooks receive (OpenAPI 3.1, `webhooks`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from application.views import BatchView
from domain.webhook.events import DELIVERED_TOPICS
from interfaces.common.api_types import PublicUpload

HEADERS = {
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
        "operationId": f"told_{topic.replace('.', '_')}",
        "summary": f"Request to a webhook that chose {topic}",
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text}
            | {"schema": {"type": "string"}}
            for name, text in HEADERS.items()
        ],
        "requestBody": {"content": {"application/json": {"schema": schema_of[repr(message)]}}},
        "responses": {"2XX": {"description": "Received: the event is not sent again"}},
        "security": [],
    }
