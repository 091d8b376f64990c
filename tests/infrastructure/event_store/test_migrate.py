from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.script import ScriptDirectory

from infrastructure.postgres.schema import MIGRATIONS, NewerDatabase, heads, migrate

TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY(%s)"


def test_processes_that_start_at_once_migrate_one_after_the_other(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrate, [empty_database_url] * 4))

    with psycopg.connect(empty_database_url) as connection:
        names = ["stored_events", "stored_snapshots", "notification_tracking", "command_answers"]
        assert connection.execute(TABLES, (names,)).fetchone() == (4,)


def test_a_migrated_database_costs_no_import_of_alembic(database_url: str) -> None:
    code = f"""
import sys
from infrastructure.postgres.schema import migrate
migrate({database_url!r})
assert "alembic" not in sys.modules and "sqlalchemy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_database_of_a_later_version_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")

    with pytest.raises(NewerDatabase, match="9999"):
        migrate(database_url)


def test_the_heads_are_those_alembic_sees() -> None:
    assert heads() == set(ScriptDirectory(str(MIGRATIONS)).get_heads())
