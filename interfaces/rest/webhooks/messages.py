"""What receivers of webhooks are sent, for the description of the API (OpenAPI 3.1, `webhooks`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from application.views import BatchView
from domain.webhook.subscription import DELIVERED_TOPICS
from interfaces.rest.answers import PublicUpload

HEADERS = {
    "webhook-id": "the same however often this event is told to this webhook",
    "webhook-timestamp": "when it was sent, in seconds since 1970",
    "webhook-signature": "`v1,` and a signature by each secret in use, with blanks between them",
}


class Links(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to read on."""

    batch: str
    report: str
    upload: str | None = None


class BatchTold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The batch as it stood right after the event at this position; `event` has its fields."""

    position: int
    event: dict[str, Any]
    batch: BatchView
    links: Links


class UploadTold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Likewise with an upload."""

    position: int
    event: dict[str, Any]
    upload: PublicUpload  # type: ignore[valid-type]
    links: Links


class BatchMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is told of a batch."""

    type: str
    timestamp: datetime
    data: BatchTold


class UploadMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is told of an upload."""

    type: str
    timestamp: datetime
    data: UploadTold


MESSAGES = (BatchMessage, UploadMessage)


def described_webhooks(schema_of: dict[str, Any]) -> dict[str, Any]:
    """By the name of the event, the request that a receiver is sent."""
    return {topic: {"post": _described(topic, schema_of)} for topic in DELIVERED_TOPICS}


def _described(topic: str, schema_of: dict[str, Any]) -> dict[str, Any]:
    message = BatchMessage if topic.startswith("batch.") else UploadMessage
    return {
        "operationId": f"told_{topic.replace('.', '_')}",
        "summary": f"What a webhook that chose {topic} is told",
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text}
            | {"schema": {"type": "string"}}
            for name, text in HEADERS.items()
        ],
        "requestBody": {"content": {"application/json": {"schema": schema_of[repr(message)]}}},
        "responses": {"2XX": {"description": "Heard: it is not told again"}},
        "security": [],
    }
