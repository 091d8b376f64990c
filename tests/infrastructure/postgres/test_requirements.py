"""Server settings that no session can change are checked at the start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from infrastructure.postgres.connection import connect
from infrastructure.postgres.requirements import (
    CheckResult,
    ConnectionLimit,
    Level,
    ReadOnlyDatabase,
    examine,
    require,
    tightest_limit,
)
from tests.postgres_servers import Server, needs_postgres, one_server

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with one_server() as server:
        server.execute("CREATE ROLE guest LOGIN")
        yield server


async def complaints(url: str) -> list[CheckResult]:
    return [verdict for verdict in await examine(url) if verdict.level is not Level.OK]


async def test_a_server_with_its_defaults_is_fit(server: Server) -> None:
    assert await complaints(server.url) == []


@pytest.mark.parametrize(
    ("setting", "level", "detail"),
    [
        ("fsync", Level.FAIL, "fsync is off"),
        ("full_page_writes", Level.WARN, "full_page_writes is off"),
    ],
)
async def test_a_server_without_durable_commits_is_reported(
    server: Server, setting: str, level: Level, detail: str
) -> None:
    server.execute(f"ALTER SYSTEM SET {setting} = off")
    server.execute("SELECT pg_reload_conf()")
    try:
        while server.execute(f"SHOW {setting}") != [("off",)]:
            pass
        [verdict] = await complaints(server.url)
    finally:
        server.execute(f"ALTER SYSTEM RESET {setting}")
        server.execute("SELECT pg_reload_conf()")
    while server.execute(f"SHOW {setting}") != [("on",)]:
        pass
    assert verdict.level is level
    assert detail in verdict.detail


async def test_a_role_whose_triggers_do_not_run_is_refused(server: Server) -> None:
    server.execute("ALTER ROLE guest SET session_replication_role = replica")
    try:
        [verdict] = await complaints(make_conninfo(server.url, user="guest"))
    finally:
        server.execute("ALTER ROLE guest RESET session_replication_role")
    assert verdict.level is Level.FAIL
    assert "session_replication_role is replica" in verdict.detail


async def test_the_tightest_limit_is_that_of_role_database_or_server(server: Server) -> None:
    async def limit(user: str) -> ConnectionLimit:
        url = make_conninfo(server.url, user=user)
        async with await connect(url, name="test") as connection:
            return await tightest_limit(connection)

    assert (await limit("guest")).most == 97  # 3 of 100 are for superusers
    assert (await limit("postgres")).most == 100
    server.execute("ALTER ROLE guest CONNECTION LIMIT 12")
    server.execute("ALTER DATABASE postgres CONNECTION LIMIT 20")
    assert (await limit("guest")).source == "role guest has CONNECTION LIMIT 12"
    server.execute("ALTER DATABASE postgres CONNECTION LIMIT 11")
    found = await limit("guest")
    assert found.source == "database postgres has CONNECTION LIMIT 11"
    assert found.remedy.format(41) == "ALTER DATABASE postgres CONNECTION LIMIT 41"
    assert (await limit("postgres")).most == 100


async def test_a_standby_is_refused_as_one_that_may_be_promoted_later(server: Server) -> None:
    server.stop()
    (server.folder / "standby.signal").touch()
    server.start()
    [verdict] = await complaints(server.url)
    assert "standby" in verdict.detail
    with pytest.raises(ReadOnlyDatabase):
        require([verdict])
    server.promote()
    assert await complaints(server.url) == []
