"""The harness and the receiver that a test of webhooks receives."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from tests.infrastructure.webhooks.harness import (
    Receiver,
    WebhookHarness,
    open_webhook_harness,
    receiving,
)


@pytest.fixture
def harness(database_url: str) -> AbstractAsyncContextManager[WebhookHarness]:
    return open_webhook_harness(database_url)


@pytest.fixture
def receiver(marked_options: dict[str, Any]) -> AbstractAsyncContextManager[Receiver]:
    """Accepts every request, unless `@pytest.mark.options(answer=...)` names another response."""
    return receiving(**marked_options)
