"""One real PostgreSQL for the whole run, and a fresh migrated database for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from infrastructure.postgres.migrate import migrate
from tests.support import with_database


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server tests run on: `UPTRAIL_TEST_DATABASE_URL`, or an embedded one of our own."""
    if url := os.environ.get("UPTRAIL_TEST_DATABASE_URL"):
        yield url
        return
    from infrastructure.postgres.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    yield server.start()
    server.discard()


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a migrated, empty database to copy."""
    name = f"uptrail_template_{uuid4().hex[:12]}"
    with _created(server_url, name) as url:
        migrate(url)
        yield name


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A fresh, migrated database for one test, dropped after it whoever is still connected."""
    with _created(server_url, f"uptrail_test_{uuid4().hex[:12]}", template) as url:
        yield url


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database that nothing has migrated yet."""
    with _created(server_url, f"uptrail_test_{uuid4().hex[:12]}") as url:
        yield url


@contextmanager
def _created(server_url: str, name: str, template: str = "template0") -> Iterator[str]:
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(
            SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template))
        )
    try:
        yield with_database(server_url, name)
    finally:
        with psycopg.connect(server_url, autocommit=True) as server:
            server.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
