"""Migrations form one line, and a database of an earlier version keeps its data."""

from __future__ import annotations

import psycopg

from infrastructure.postgres.schema import heads, migrate


def test_migrations_are_one_line() -> None:
    assert len(heads()) == 1


def test_a_database_that_is_current_is_left_as_it_is(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        before = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        migrate(database_url)
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == before
