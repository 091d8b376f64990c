"""Databases for benchmarks, on an embedded PostgreSQL or on UPTRAIL_TEST_DATABASE_URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg
from psycopg import conninfo, sql

from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.postgres.schema import migrate


@contextmanager
def fresh_database() -> Iterator[str]:
    """Create a migrated, empty database; yield its URL."""
    with _server() as server, _named(server, f"benchmark_{uuid4().hex}") as url:
        migrate(url)
        yield url


@contextmanager
def empty_database() -> Iterator[dict[str, str]]:
    """Create an empty database; yield the settings of the eventsourcing library for it."""
    with _server() as server, _named(server, f"library_{uuid4().hex}") as url:
        parts = conninfo.conninfo_to_dict(url)
        yield {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(parts["dbname"]),
            "POSTGRES_HOST": str(parts["host"]),
            "POSTGRES_PORT": str(parts.get("port", 5432)),
            "POSTGRES_USER": str(parts["user"]),
            "POSTGRES_PASSWORD": str(parts.get("password", "")),
        }


@contextmanager
def _server() -> Iterator[str]:
    if url := os.environ.get("UPTRAIL_TEST_DATABASE_URL"):
        yield url
        return
    with TemporaryDirectory(prefix="uptrail-bench-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder)) as url:
            yield url


@contextmanager
def _named(server: str, name: str) -> Iterator[str]:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield conninfo.make_conninfo(server, dbname=name)
        finally:
            # No FORCE: it fails during autovacuum, whose process this role may not terminate.
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
