"""A read-only database: reads are answered, writes refused, and no process ends."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from tests.postgres_servers import needs_postgres, one_server
from tests.server_process import Cluster, open_cluster, run_command, wait_for

pytestmark = pytest.mark.timeout(300)

ANSWER_WITHIN = 30.0  # seconds


def alter(url: str, change: str) -> None:
    """Change the database, and end every session, so that new ones find it changed."""
    with psycopg.connect(url, autocommit=True) as connection:
        name = Identifier(connection.info.dbname)
        connection.execute(SQL("ALTER DATABASE {} ").format(name) + SQL(change))  # type: ignore[arg-type]
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND application_name LIKE 'uptrail-%'"
        )


def require_reads_only(cluster: Cluster, batch: str) -> None:
    """Check repeatedly that reads succeed and writes are refused in time."""
    wait_for(lambda: cluster.admin.answer("GET", f"/v1/batches/{batch}").status == 200)
    began = time.monotonic()
    answer = cluster.admin.answer("POST", "/v1/batches", body=b"{}", headers=JSON)
    assert time.monotonic() - began < ANSWER_WITHIN
    assert answer.status == 503, answer
    assert answer.json["code"] == "unavailable"
    assert answer.headers["Retry-After"]
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert cluster.admin.answer("GET", f"/v1/batches/{batch}/history").status == 200
    assert cluster.admin.answer("GET", "/readyz").status == 200


JSON = {"Content-Type": "application/json"}


def test_a_database_that_turns_read_only_is_waited_for(database_url: str, tmp_path: Path) -> None:
    with open_cluster(database_url, tmp_path) as cluster:
        server = cluster.start()
        batch = cluster.admin.send_batch({"a.txt": b"before"})
        wait_for(lambda: cluster.admin.batch(batch)["outcome"] == "succeeded")
        alter(database_url, "SET default_transaction_read_only = on")
        require_reads_only(cluster, batch)
        place = ("--data-dir", str(cluster.data_dir), "--port", "0")
        second = run_command("serve", *place, environment={"UPTRAIL_DATABASE_URL": database_url})
        assert second.returncode == 5
        assert "takes no writes" in second.stderr
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            name = Identifier(connection.info.dbname)
            connection.execute(
                SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name)
            )
        require_recovery(cluster)
        assert server.poll() is None
        assert "part_died" not in cluster.output()


@needs_postgres
def test_a_server_that_becomes_a_standby_is_waited_for(tmp_path: Path) -> None:
    with one_server() as postgres, open_cluster(postgres.url, tmp_path) as cluster:
        server = cluster.start()
        batch = cluster.admin.send_batch({"a.txt": b"before"})
        wait_for(lambda: cluster.admin.batch(batch)["outcome"] == "succeeded")
        postgres.stop()
        (postgres.folder / "standby.signal").touch()
        postgres.start()
        require_reads_only(cluster, batch)
        postgres.promote()
        require_recovery(cluster)
        assert server.poll() is None
        assert "part_died" not in cluster.output()
        assert "Task exception was never retrieved" not in cluster.output()


def require_recovery(cluster: Cluster) -> None:
    """Check that every role has recovered: a new upload is processed to its end."""
    wait_for(
        lambda: cluster.admin.answer("POST", "/v1/batches", body=b"{}", headers=JSON).status == 201
    )
    batch = cluster.admin.send_batch({"b.txt": b"after"})
    wait_for(lambda: cluster.admin.batch(batch)["outcome"] == "succeeded")
