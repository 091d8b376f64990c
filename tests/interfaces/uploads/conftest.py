"""The server that a test of uploads receives, and two server processes that share uploads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.interfaces.uploads.server import Server, serving
from tests.server_process import open_machines


@pytest.fixture
def server(
    database_url: str, tmp_path: Path, marked_options: dict[str, Any]
) -> AbstractAsyncContextManager[Server]:
    return serving(database_url, tmp_path, **marked_options)


@pytest.fixture
def servers(database_url: str, tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """The URLs of two processes on one database and one folder of blobs, and an admin key."""
    with open_machines(database_url, tmp_path) as machines:
        here, there = machines.serve("here", "api"), machines.serve("there", "api")
        machines.wait_until_ready()
        yield here.url, there.url, here.key
