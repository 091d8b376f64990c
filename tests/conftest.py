"""One real PostgreSQL for the whole run, and a fresh migrated database for every test."""

from __future__ import annotations

import gc
import inspect
import os
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from infrastructure.postgres.schema import migrate
from tests.support import run, with_database

TRIES = 60  # of dropping a database
PAUSE = 0.25  # seconds between two of them


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test on the event loop of production.

    The test receives asynchronous context managers entered, and they end with it: a fixture
    returns one where setting up needs the loop of the test.
    """
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames

    async def enter_and_run() -> None:
        async with AsyncExitStack() as stack:
            arguments = {name: pyfuncitem.funcargs[name] for name in names}
            for name, value in arguments.items():
                if isinstance(value, AbstractAsyncContextManager):
                    arguments[name] = await stack.enter_async_context(value)
            await pyfuncitem.obj(**arguments)

    run(enter_and_run())
    return True


@pytest.fixture
def marked_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings that `@pytest.mark.options` gives to the server or harness of one test."""
    mark = request.node.get_closest_marker("options")
    return dict(mark.kwargs) if mark else {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the texts of unraisable exceptions, which the summary line only counts."""
    report = yield
    if call.excinfo is not None:
        report.unraisable = _unraisable_texts(call.excinfo.value)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print unraisable exceptions right before the summary: a log of CI may end with that."""
    stats = terminalreporter.stats
    for report in [*stats.get("failed", []), *stats.get("error", [])]:
        for text in getattr(report, "unraisable", ()):
            terminalreporter.write_line(f"unraisable in {report.nodeid}, or before it: {text}")


def _unraisable_texts(error: BaseException) -> list[str]:
    errors = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
    return [
        f"{str(found).splitlines()[0]}: {found.__cause__!r}"
        for found in errors
        if isinstance(found, pytest.PytestUnraisableExceptionWarning)
    ]


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect garbage after each module, so that what it leaves open fails one of its own tests."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server tests run on: `UPTRAIL_TEST_DATABASE_URL`, or an embedded one of our own."""
    if url := os.environ.get("UPTRAIL_TEST_DATABASE_URL"):
        yield url
        return
    from infrastructure.postgres.embedded.server import EmbeddedPostgres

    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    yield server.start()
    server.discard()


@pytest.fixture(scope="session")
def databases(server_url: str) -> Iterator[Databases]:
    """Factory of fresh, migrated databases."""
    template = _name("template")
    _create(server_url, template, "template0")
    migrate(with_database(server_url, template))
    with Databases(server_url, template) as databases:
        yield databases
    _drop(server_url, template)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A fresh, migrated database for one test, dropped after it despite open connections."""
    name = databases.take()
    yield with_database(databases.server_url, name)
    databases.drop(name)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database that nothing has migrated yet."""
    name = _name("empty")
    _create(server_url, name, "template0")
    yield with_database(server_url, name)
    _drop(server_url, name)


class Databases:
    """Makes the database of the next test, and drops that of the last, while a test runs."""

    def __init__(self, server_url: str, template: str) -> None:
        self.server_url = server_url
        self._template = template
        self._thread = ThreadPoolExecutor(1, "databases")
        self._next = self._thread.submit(self._create)
        self._dropped: Future[None] | None = None

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.drop(self._next.result())
        if self._dropped is not None:
            self._dropped.result()
        self._thread.shutdown()

    def take(self) -> str:
        name = self._next.result()
        self._next = self._thread.submit(self._create)
        return name

    def drop(self, name: str) -> None:
        last, self._dropped = self._dropped, self._thread.submit(_drop, self.server_url, name)
        if last is not None:
            last.result()  # raises what went wrong the last time, once

    def _create(self) -> str:
        name = _name("test")
        _create(self.server_url, name, self._template)
        return name


def _name(kind: str) -> str:
    return f"uptrail_{kind}_{uuid4().hex[:12]}"


def _create(server_url: str, name: str, template: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(
            SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template))
        )


def _drop(server_url: str, name: str) -> None:
    """Drop the database; terminate its sessions, again if they reconnect.

    Our role cannot terminate the autovacuum worker, which ends by itself.
    """
    for left in reversed(range(TRIES)):
        try:
            with psycopg.connect(server_url, autocommit=True) as server:
                server.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
        except (psycopg.errors.ObjectInUse, psycopg.errors.InsufficientPrivilege):
            if not left:
                raise
            time.sleep(PAUSE)
        else:
            return
