"""A server whose connections go through pgbouncer, with tables in a schema of their own."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.server_process import open_cluster, run_command, wait_for

pytestmark = [needs_pgbouncer, pytest.mark.timeout(300)]


def test_a_server_behind_session_pooling_with_options_processes_uploads(
    empty_database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA app")
    with pgbouncer(empty_database_url, "session", default_pool_size=60) as pooled:
        url = make_conninfo(pooled, options="-csearch_path=app")
        with open_cluster(url, tmp_path) as cluster:
            cluster.start()
            batch = cluster.admin.send_batch({"a.txt": b"hello"})
            done = wait_for(lambda: (found := cluster.admin.batch(batch))["outcome"] and found)
            assert done["outcome"] == "succeeded"
            doctor = run_command("doctor", environment={"UPTRAIL_DATABASE_URL": url})
            assert "a pooler in session mode" in doctor.stdout
    with psycopg.connect(empty_database_url) as connection:
        where = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'procrastinate%'"
        assert connection.execute(where).fetchall() == [("app",)]


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_server_behind_another_kind_of_pooling_does_not_start(
    empty_database_url: str, tmp_path: Path, mode: str
) -> None:
    with pgbouncer(empty_database_url, mode) as url:
        place = ("--data-dir", str(tmp_path / "data"))
        environment = {"UPTRAIL_DATABASE_URL": url}
        server = run_command("serve", "--port", "0", *place, environment=environment)
        doctor = run_command("doctor", *place, environment=environment)
    assert server.returncode == 1
    assert "the pooler is not in session mode" in server.stderr
    assert "set pool_mode = session" in server.stderr
    assert "Traceback" not in server.stderr
    assert doctor.returncode == 1
    assert "FAIL  pooling" in doctor.stdout
    with psycopg.connect(empty_database_url) as connection:  # it was not migrated either
        assert connection.execute("SELECT to_regclass('stored_events')").fetchone() == (None,)
