"""The server that a test of other people's clients receives."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.interfaces.uploads.server import Server, serving


@pytest.fixture
def server(
    database_url: str, tmp_path: Path, marked_options: dict[str, Any]
) -> AbstractAsyncContextManager[Server]:
    return serving(database_url, tmp_path / "data", **marked_options)
