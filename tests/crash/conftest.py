"""Fork server for the whole run: imports take a second, and a fork takes milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.crash.fork_server import ForkServer
from tests.crash.harness import CrashHarness, open_crash_harness


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("fork_server") / "log") as fork_server:
        yield fork_server


@pytest.fixture
def harness(
    database_url: str, fork_server: ForkServer, tmp_path: Path
) -> AbstractAsyncContextManager[CrashHarness]:
    return open_crash_harness(database_url, fork_server, tmp_path)
