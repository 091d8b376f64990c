"""Sessions have the settings that Uptrail relies on, whatever database, role or URL have."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier, Literal
from sqlalchemy import text

from infrastructure.postgres.connection import Connection, connect, connect_blocking
from infrastructure.postgres.database_url import REQUIRED, BadDatabaseUrl, parse_database_url
from infrastructure.postgres.pool import make_pool
from infrastructure.postgres.requirements import CheckResult, Level, examine
from infrastructure.postgres.schema import migrate
from infrastructure.read_model.engine import make_engine
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.support import with_database

OTHERWISE = {
    "synchronous_commit": "off",
    "client_encoding": "LATIN1",
    "DateStyle": "German, DMY",
    "TimeZone": "Asia/Kathmandu",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "exit_on_error": "on",
    "row_security": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "20000",
    "lock_timeout": "20000",
    "idle_in_transaction_session_timeout": "20000",
    "idle_session_timeout": "20000",
}


def set_otherwise(url: str, whose: str, settings: dict[str, str]) -> None:
    """Set by ALTER DATABASE, or by ALTER ROLE for this database alone."""
    name = Identifier(str(conninfo_to_dict(url)["dbname"]))
    whom = SQL("DATABASE {}" if whose == "database" else "ROLE CURRENT_USER IN DATABASE {}")
    with psycopg.connect(url, autocommit=True) as connection:
        for key, value in settings.items():
            change = SQL("ALTER {} SET {} = {}").format(
                whom.format(name), Identifier(key), Literal(value)
            )
            connection.execute(change)


async def setting(connection: Connection, name: str) -> str:
    row = await (await connection.execute("SELECT current_setting(%s)", (name,))).fetchone()
    assert row is not None
    return str(row[0])


async def failed(url: str) -> list[CheckResult]:
    return [verdict for verdict in await examine(url) if verdict.level is Level.FAIL]


@pytest.mark.parametrize("whose", ["database", "role"])
async def test_a_session_states_every_setting_that_its_database_or_role_sets_otherwise(
    database_url: str, whose: str
) -> None:
    assert set(OTHERWISE) >= set(REQUIRED) - {"default_table_access_method"}
    set_otherwise(database_url, whose, OTHERWISE)

    wanted = {**REQUIRED, "synchronous_commit": "on"}
    async with await connect(database_url, name="test") as connection:
        assert {name: await setting(connection, name) for name in wanted} == wanted
    with connect_blocking(database_url, name="test") as blocking:
        for name, value in wanted.items():
            assert blocking.execute(f"SHOW {name}".encode()).fetchone() == (value,)
    wanted["statement_timeout"] = "12s"
    async with make_pool(database_url, name="test") as pool, pool.connection() as connection:
        assert {name: await setting(connection, name) for name in wanted} == wanted
    engine = make_engine(database_url)
    try:
        async with engine.connect() as session:
            for name, value in wanted.items():
                assert (await session.execute(text(f"SHOW {name}"))).scalar_one() == value
    finally:
        await engine.dispose()
    verdicts = {verdict.check: verdict for verdict in await examine(database_url)}
    assert verdicts["settings"].level is Level.OK
    assert "synchronous_commit = off" in verdicts["settings"].detail


async def test_a_stronger_commit_stays_as_the_operator_chose_it(database_url: str) -> None:
    async def chosen() -> str:
        async with await connect(database_url, name="test") as connection:
            return await setting(connection, "synchronous_commit")

    for weaker in ("off", "local", "remote_write"):
        set_otherwise(database_url, "database", {"synchronous_commit": weaker})
        assert await chosen() == "on"
    set_otherwise(database_url, "database", {"synchronous_commit": "remote_apply"})
    assert await chosen() == "remote_apply"


async def test_a_database_that_takes_no_writes_is_refused_in_one_sentence(
    database_url: str,
) -> None:
    set_otherwise(database_url, "database", {"default_transaction_read_only": "on"})
    [verdict] = await failed(database_url)
    assert "default_transaction_read_only" in verdict.detail


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_with_another_encoding_is_refused(server_url: str, encoding: str) -> None:
    name = f"uptrail_test_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(
            SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE 'C'").format(
                Identifier(name), Literal(encoding)
            )
        )
        try:
            [verdict] = await failed(with_database(server_url, name))
            assert encoding in verdict.detail
        finally:
            server.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


async def test_a_search_path_that_hides_the_tables_is_refused(database_url: str) -> None:
    set_otherwise(database_url, "database", {"search_path": "nowhere"})
    [verdict] = await failed(database_url)
    assert "names no schema" in verdict.detail
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA nowhere")
    [verdict] = await failed(database_url)
    assert "schema public" in verdict.detail


async def test_the_search_path_of_the_url_holds_for_every_connection(
    empty_database_url: str,
) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA app")
    joint = "&" if "?" in empty_database_url else "?"
    url = f"{empty_database_url}{joint}options=-csearch_path%3Dapp%20--work-mem%3D5MB"
    migrate(url)

    query = "SELECT to_regclass('procrastinate_jobs')::text, to_regclass('app.stored_events')"
    async with (
        await connect(url, name="test") as own,
        make_pool(url, name="test", settings={"synchronous_commit": "off"}) as pool,
        pool.connection() as pooled,
    ):
        for connection in (own, pooled):
            assert await setting(connection, "work_mem") == "5MB"
            row = await (await connection.execute(query)).fetchone()
            assert row is not None
            assert None not in row
    engine = make_engine(url)
    try:
        async with engine.connect() as session:
            assert (await session.execute(text("SHOW search_path"))).scalar_one() == "app"
    finally:
        await engine.dispose()
    assert await failed(url) == []
    # Without the option, no second set of tables is made.
    [verdict] = await failed(empty_database_url)
    assert "schema app" in verdict.detail


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ("-csynchronous_commit=off", "synchronous_commit=off contradicts"),
        ("--statement-timeout=5", "statement_timeout=5 contradicts"),
        ("-c TimeZone=Asia/Tokyo", "TimeZone=Asia/Tokyo contradicts"),
        ("-e", "'-e' cannot be applied"),
        ("-c work_mem", "'work_mem' is not name=value"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options: str, detail: str) -> None:
    with pytest.raises(BadDatabaseUrl, match=detail):
        parse_database_url(make_conninfo("", host="db", options=options))


async def test_an_unknown_option_is_refused_in_one_sentence(database_url: str) -> None:
    url = make_conninfo(database_url, options="-c no_such_setting=1")
    with pytest.raises(BadDatabaseUrl, match="no_such_setting"):
        await failed(url)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://u:secret@h/d", "postgresql://u:secret%zz@h/d", "http://secret"]
)
def test_a_url_that_is_none_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(BadDatabaseUrl) as refused:
        parse_database_url(url)
    assert "secret" not in str(refused.value)


def test_parameters_of_the_url_override_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://u:p%40%2Fw@one,two/name?application_name=mine&connect_timeout=3"
    url += "&keepalives_idle=7&target_session_attrs=read-write&sslmode=require"
    said = conninfo_to_dict(parse_database_url(url).conninfo("test"))
    assert said["application_name"] == "mine"
    assert said["connect_timeout"] == "3"
    assert said["keepalives_idle"] == "7"
    assert said["target_session_attrs"] == "read-write"
    assert said["sslmode"] == "require"
    assert said["password"] == "p@/w"
    assert said["tcp_user_timeout"] == "10000"
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    assert "connect_timeout" not in conninfo_to_dict(
        parse_database_url("postgresql://h/d").conninfo("test")
    )


def test_the_primary_among_several_hosts_is_used_and_the_last_one_reached_comes_first() -> None:
    parsed = parse_database_url("postgresql://one:1,two:2,three:3/name")
    said = conninfo_to_dict(parsed.conninfo("test", first=("two", "", "2")))
    assert (said["host"], said["port"]) == ("two,one,three", "2,1,3")
    assert said["target_session_attrs"] == "primary"
    single = conninfo_to_dict(parse_database_url("postgresql://one/name").conninfo("test"))
    assert "target_session_attrs" not in single


def test_a_service_file_is_read_for_its_options_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "services"
    file.write_text("# ours\n[uptrail]\nhost=db\ndbname=up\noptions=-csearch_path=app\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    parsed = parse_database_url("postgresql:///other?service=uptrail")
    assert parsed.session == {"search_path": "app"}
    said = conninfo_to_dict(parsed.conninfo("test"))
    assert (said["host"], said["dbname"]) == ("db", "other")
    with pytest.raises(BadDatabaseUrl, match="nowhere"):
        parse_database_url("postgresql://?service=nowhere")


@needs_pgbouncer
@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("transaction", {"default_pool_size": 1}),
        ("transaction", {"default_pool_size": 5}),
        ("transaction", {"default_pool_size": 5, "server_round_robin": 1}),
        ("transaction", {"default_pool_size": 1, "server_reset_query_always": 1}),
        ("transaction", {"default_pool_size": 5, "server_reset_query_always": 1}),
        ("statement", {"default_pool_size": 1}),
        ("statement", {"default_pool_size": 5}),
    ],
)
async def test_a_pooler_that_shares_server_processes_is_refused(
    database_url: str, mode: str, settings: dict[str, object]
) -> None:
    with pgbouncer(database_url, mode, **settings) as url:
        # Some processes are idle there, as behind a pooler that others use.
        await asyncio.gather(*(_use(url) for _ in range(4)))
        [verdict] = await failed(url)
        assert "not in session mode" in verdict.detail
        assert "pool_mode" in verdict.advice


async def _use(url: str) -> None:
    async with await connect(url, name="test") as connection:
        await connection.execute("SELECT 1")


@needs_pgbouncer
async def test_a_pooler_in_session_mode_is_accepted(database_url: str) -> None:
    with pgbouncer(database_url, "session") as url:
        options = make_conninfo(url, options="-c work_mem=6MB")
        async with make_pool(options, name="test") as pool, pool.connection() as connection:
            assert await setting(connection, "work_mem") == "6MB"
        assert await failed(options) == []
        [pooling] = [each for each in await examine(url) if each.check == "pooling"]
        assert pooling.detail == "a pooler in session mode"


async def test_a_connection_is_closed_when_its_rollback_is_cancelled(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that does not end is cancelled again, maybe while it leaves the connection."""
    connection = await connect(database_url, name="test")
    rolling_back = asyncio.Event()

    async def rollback() -> None:
        rolling_back.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(connection, "rollback", rollback)

    async def work() -> None:
        async with connection:
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await rolling_back.wait()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert connection.closed
