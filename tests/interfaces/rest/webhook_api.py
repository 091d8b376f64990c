"""A server of the API whose webhooks are delivered to a receiver in the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.infrastructure.webhooks.harness import Receiver, open_webhook_harness, receiving
from tests.interfaces.rest.server import Server, serving
from tests.support import eventually

HOOK = {"url": "https://example.com/hook", "events": ["batch.started", "batch.completed"]}


@dataclass(frozen=True)
class WebhookApi:
    """An API, and a follower and a deliverer in what might be other processes."""

    server: Server
    receiver: Receiver

    async def add(self, **fields: Any) -> dict[str, Any]:
        form = {**HOOK, "url": self.receiver.url, **fields}
        answer = await self.server.post("/v1/webhooks", json=form)
        assert answer.status == 201, answer.body
        found: dict[str, Any] = answer.json
        return found

    async def delivery(self, id: str, state: str) -> dict[str, Any]:
        """The newest delivery of a webhook, once there is one in this state."""

        async def there() -> Any:
            found = await self.server.get(f"/v1/webhooks/{id}/deliveries", params={"state": state})
            return found.json["items"] and found.json["items"][0]

        newest: dict[str, Any] = await eventually(there)
        return newest


@asynccontextmanager
async def open_webhook_api(url: str, folder: Path, **settings: Any) -> AsyncIterator[WebhookApi]:
    settings.setdefault("allow_private_addresses", True)
    async with (
        open_webhook_harness(url, folder) as harness,
        receiving() as receiver,
        serving(url, folder, **settings) as server,
    ):
        await harness.open()
        yield WebhookApi(server, receiver)
