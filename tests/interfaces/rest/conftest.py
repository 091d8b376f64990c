"""The servers that tests of the API receive, with the settings of `@pytest.mark.options`."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.interfaces.rest.server import Server, serving
from tests.interfaces.rest.webhook_api import WebhookApi, open_webhook_api


@pytest.fixture
def server(
    database_url: str, tmp_path: Path, marked_options: dict[str, Any]
) -> AbstractAsyncContextManager[Server]:
    return serving(database_url, tmp_path, **marked_options)


@pytest.fixture
def api(
    database_url: str, tmp_path: Path, marked_options: dict[str, Any]
) -> AbstractAsyncContextManager[WebhookApi]:
    return open_webhook_api(database_url, tmp_path, **marked_options)
