"""One running server for each module of faults: a process with every role, on a fresh database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.conftest import Databases
from tests.server_process import Cluster, open_cluster
from tests.support import with_database

MakeCluster: TypeAlias = Callable[..., Cluster]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the module's servers and whatever their processors leave behind."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def make_cluster(databases: Databases, folder: Path) -> Iterator[MakeCluster]:
    """Makes places for servers, each on a database of its own; `settings` as in the file."""
    with ExitStack() as clusters:

        def make(**settings: Any) -> Cluster:
            name = databases.take()
            clusters.callback(databases.drop, name)
            url = with_database(databases.server_url, name)
            return clusters.enter_context(open_cluster(url, folder / name, **settings))

        yield make


@pytest.fixture(scope="module")
def cluster(make_cluster: MakeCluster, request: pytest.FixtureRequest) -> Cluster:
    """The module's server, with the settings of its `SETTINGS` if it has any."""
    made = make_cluster(**getattr(request.module, "SETTINGS", {}))
    made.start()
    return made
