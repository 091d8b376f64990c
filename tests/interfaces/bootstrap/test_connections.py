"""A server reports at the start how many connections it needs, and runs with that number."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from infrastructure.settings import Settings
from interfaces.bootstrap.container import ALL_ROLES, Role, needs_of, needs_of_server
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.server_process import open_cluster, run_command, wait_for

pytestmark = pytest.mark.timeout(300)

LEAST = needs_of(Settings(), ALL_ROLES).least


def limit_connections(url: str, number: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        name = Identifier(connection.info.dbname)
        limit = SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, SQL(str(number)))  # type: ignore[arg-type]
        connection.execute(limit)


def test_too_few_connections_are_refused_with_how_many_are_needed(
    database_url: str, tmp_path: Path
) -> None:
    limit_connections(database_url, 10)
    place = ("--data-dir", str(tmp_path / "data"))
    environment = {"UPTRAIL_DATABASE_URL": database_url}
    server = run_command("serve", "--port", "0", *place, environment=environment)
    doctor = run_command("doctor", *place, environment=environment)
    assert server.returncode == 1
    assert "has CONNECTION LIMIT 10, of which 10 are free" in server.stderr
    assert f"needs {LEAST} connections at least" in server.stderr
    assert "CONNECTION LIMIT 41" in server.stderr
    assert "Traceback" not in server.stderr
    assert doctor.returncode == 1
    assert "FAIL  connections" in doctor.stdout


def test_a_server_works_with_the_reported_number_of_connections(
    database_url: str, tmp_path: Path
) -> None:
    limit_connections(database_url, LEAST)
    with open_cluster(database_url, tmp_path) as cluster:
        cluster.start()
        assert "few_connections" in cluster.output()
        batches = [cluster.admin.send_batch({"a.txt": b"a", "b.txt": b"b"}) for _ in range(3)]
        for batch in batches:
            wait_for(lambda batch=batch: cluster.admin.batch(batch)["outcome"] == "succeeded")
        assert "part_died" not in cluster.output()


@needs_pgbouncer
def test_a_pooler_that_gives_too_few_connections_is_refused(
    database_url: str, tmp_path: Path
) -> None:
    with pgbouncer(database_url, "session", default_pool_size=5) as url:
        environment = {"UPTRAIL_DATABASE_URL": url}
        server = run_command(
            "serve", "--port", "0", "--data-dir", str(tmp_path / "data"), environment=environment
        )
    assert server.returncode == 1
    assert f"the pooler gives 5 connections at once; this server needs {LEAST}" in server.stderr
    assert "default_pool_size" in server.stderr


def test_several_processes_need_the_connections_of_each() -> None:
    settings = Settings(processes=3)
    each = needs_of_server(settings, ALL_ROLES)
    api = needs_of(settings, [Role.API])
    assert each == [api, api, api, needs_of(settings, [Role.ORCHESTRATOR, Role.WORKER])]
