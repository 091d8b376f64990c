"""One running server for each module of faults: a process with every role, on a fresh database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.conftest import Databases
from tests.faults.site import Site, open_site
from tests.support import with_database

MakeSite: TypeAlias = Callable[..., Site]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the module's servers and whatever their processors leave behind."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def make_site(databases: Databases, folder: Path) -> Iterator[MakeSite]:
    """Makes places for servers, each on a database of its own; `settings` as in the file."""
    with ExitStack() as sites:

        def make(**settings: Any) -> Site:
            name = databases.take()
            sites.callback(databases.drop, name)
            url = with_database(databases.server_url, name)
            return sites.enter_context(open_site(url, folder / name, **settings))

        yield make


@pytest.fixture(scope="module")
def site(make_site: MakeSite, request: pytest.FixtureRequest) -> Site:
    """The module's server, with the settings of its `SETTINGS` if it has any."""
    made = make_site(**getattr(request.module, "SETTINGS", {}))
    made.start()
    return made
