"""Fork server for the whole run: imports take a second, and a fork takes milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.fork_server import ForkServer


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("fork_server") / "log") as fork_server:
        yield fork_server
