"""Requirements for the database and its connection limits, checked at the start of a server and by
`uptrail doctor`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from enum import StrEnum
from secrets import token_hex
from typing import Any

import msgspec
import psycopg

from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.database_url import DURABLE, REQUIRED

MIN_SERVER_VERSION = 14  # major version of PostgreSQL
ROUNDS = 3  # of the pooling probe
WRITES = "writes"  # the check that may fail for a while only

_SERVER = """SELECT current_setting('server_encoding'), current_setting('fsync'),
current_setting('full_page_writes'), pg_is_in_recovery(), current_setting('transaction_read_only'),
current_setting('session_replication_role'), current_schema(), current_setting('search_path')"""

# Only a table of ours has this name; it lies where the first migration has put it.
_OURS = """SELECT n.nspname, pg_table_is_visible(c.oid) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'command_answers' AND c.relkind = 'r'"""

_SETTINGS = """SELECT lower(name), setting, reset_val FROM pg_settings
WHERE lower(name) = ANY(%s::text[])"""

_MARK = "SELECT set_config('uptrail.probe', %s, false)"
_MARKED = "SELECT coalesce(current_setting('uptrail.probe', true), '')"


class UnfitDatabase(Exception):
    """Raised for a database that does not meet a requirement; `hint` is what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class ReadOnlyDatabase(UnfitDatabase):
    """The database takes no writes at the moment."""


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class CheckResult(msgspec.Struct, frozen=True, rename={"detail": "told"}):
    """Result of one check; `advice` is what to do unless the level is ok.

    `uptrail doctor --json` prints it, with the name `told` that `detail` has there since 0.1.
    """

    level: Level
    check: str
    detail: str
    advice: str = ""


async def examine(url: str) -> list[CheckResult]:
    """Check server, database, role and connection. Raises psycopg.Error, BadDatabaseUrl."""
    async with await connect(url, name="check", patient=False) as connection:
        number = connection.info.server_version
        if number < MIN_SERVER_VERSION * 10_000:
            detail = f"PostgreSQL {number // 10_000} is too old"
            return [
                CheckResult(
                    Level.FAIL, "database", detail, f"use PostgreSQL {MIN_SERVER_VERSION} or newer"
                )
            ]
        pooling = await _pooling(connection, url)
        if pooling.level is Level.FAIL:  # other settings read here may be another session's
            return [pooling]
        return [pooling, *await _server(connection), await _session(connection)]


def require(results: Sequence[CheckResult]) -> None:
    """Raise UnfitDatabase for the first check that failed."""
    for result in results:
        if result.level is Level.FAIL:
            kind = ReadOnlyDatabase if result.check == WRITES else UnfitDatabase
            raise kind(result.detail, result.advice)


async def _server(connection: Connection) -> list[CheckResult]:
    row = await (await connection.execute(_SERVER)).fetchone()
    assert row is not None
    encoding, fsync, whole_pages, standby, read_only, replication, schema, path = row
    results = [
        _encoding(encoding),
        _writable(standby, read_only == "on"),
        _fsync(fsync == "on", whole_pages == "on"),
        await _schema(connection, schema, path),
    ]
    if replication != "origin":
        detail = (
            f"session_replication_role is {replication}, so that triggers of the queue do not run"
        )
        advice = "ALTER ROLE and ALTER DATABASE ... RESET session_replication_role"
        results.append(CheckResult(Level.FAIL, "triggers", detail, advice))
    return results


def _encoding(encoding: str) -> CheckResult:
    if encoding != "UTF8":
        detail = f"the database is encoded as {encoding}, which cannot hold every name of a file"
        advice = "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        return CheckResult(Level.FAIL, "encoding", detail, advice)
    return CheckResult(Level.OK, "encoding", encoding)


def _writable(standby: bool, read_only: bool) -> CheckResult:
    if standby:
        detail = "the database is a standby, which takes no writes"
        advice = "name the primary, or all servers as postgresql://one,other/name"
        return CheckResult(Level.FAIL, WRITES, detail, advice)
    if read_only:
        detail = "the database takes no writes: default_transaction_read_only is on"
        advice = "ALTER DATABASE, ALTER ROLE or ALTER SYSTEM RESET default_transaction_read_only"
        return CheckResult(Level.FAIL, WRITES, detail, advice)
    return CheckResult(Level.OK, WRITES, "taken")


def _fsync(fsync: bool, whole_pages: bool) -> CheckResult:
    if not fsync:
        detail = "fsync is off: a crash of the machine would lose what was acknowledged"
        return CheckResult(Level.FAIL, "durability", detail, "set fsync = on in postgresql.conf")
    if not whole_pages:
        detail = "full_page_writes is off: safe only where the file system never tears a page"
        advice = "set full_page_writes = on, unless the data is on ZFS or the like"
        return CheckResult(Level.WARN, "durability", detail, advice)
    return CheckResult(Level.OK, "durability", "fsync and full_page_writes are on")


async def _schema(connection: Connection, schema: str | None, path: str) -> CheckResult:
    if schema is None:
        detail = f"search_path is {path}, which names no schema that this role may use"
        return CheckResult(
            Level.FAIL, "search_path", detail, "CREATE SCHEMA, or correct search_path"
        )
    found = await (await connection.execute(_OURS)).fetchall()
    if found and not any(visible for _, visible in found):
        detail = (
            f"Uptrail's tables are in schema {found[0][0]}, which search_path {path} leaves out"
        )
        advice = "set the same search_path for every role that Uptrail connects as"
        return CheckResult(Level.FAIL, "search_path", detail, advice)
    return CheckResult(
        Level.OK, "search_path", f"tables are in schema {found[0][0] if found else schema}"
    )


async def _session(connection: Connection) -> CheckResult:
    """Check that each setting has the value that the session set, and list overridden ones."""
    wanted = {name.lower(): {value.lower()} for name, value in REQUIRED.items()}
    wanted["synchronous_commit"] = set(DURABLE)
    rows = await (await connection.execute(_SETTINGS, (list(wanted),))).fetchall()
    wrong = [f"{name} = {now}" for name, now, _ in rows if now.lower() not in wanted[name]]
    if wrong:
        detail = f"{', '.join(sorted(wrong))} cannot be changed by a session"
        return CheckResult(
            Level.FAIL, "settings", detail, "ALTER ROLE or ALTER DATABASE ... RESET ..."
        )
    detail = f"{len(rows)} stated by every session"
    if others := sorted(
        f"{name} = {usual}" for name, _, usual in rows if usual.lower() not in wanted[name]
    ):
        detail += f"; without that: {', '.join(others)}"
    return CheckResult(Level.OK, "settings", detail)


async def _pooling(connection: Connection, url: str) -> CheckResult:
    """Check that the session keeps its server process: a pooler must be in session mode.

    A session leaves a mark. It must be there in its next transactions, although others run
    meanwhile, and no other session may see it. Where transactions share server processes, the
    other session meets the mark in the process that was used last, or takes that process away.
    """
    direct = await _one(connection, "SELECT pg_backend_pid()") == connection.info.backend_pid
    try:
        async with await connect(url, name="probe", patient=False) as other:
            shared = await _share_processes(connection, other)
    except psycopg.errors.ConnectionTimeout:
        detail = "the pooler gave no second connection in time"
        advice = "raise default_pool_size of pgbouncer: every session needs a connection of its own"
        return CheckResult(Level.FAIL, "pooling", detail, advice)
    except psycopg.errors.ProtocolViolation as error:  # statement pooling refuses transactions
        return _shared(str(error).strip())
    if shared:
        return _shared("transactions of different sessions share server processes")
    detail = "none: connections reach the server itself" if direct else "a pooler in session mode"
    return CheckResult(Level.OK, "pooling", detail)


async def _share_processes(connection: Connection, other: Connection) -> bool:
    mark = token_hex(8)
    await connection.execute(_MARK, (mark,))
    for _ in range(ROUNDS):
        if await _one(connection, _MARKED) != mark:
            return True
        async with other.transaction():
            if await _one(other, _MARKED) == mark:
                return True
            # The other session holds a process now: another must be free for this transaction.
            if await _one(connection, _MARKED) != mark:
                return True
    await connection.execute(_MARK, ("",))
    return False


def _shared(reason: str) -> CheckResult:
    detail = (
        "the pooler is not in session mode, so that locks, notifications and settings of a session"
        f" are lost ({reason})"
    )
    return CheckResult(
        Level.FAIL, "pooling", detail, "set pool_mode = session for this database in pgbouncer.ini"
    )


async def _one(connection: Connection, query: str) -> Any:
    row = await (await connection.execute(query.encode())).fetchone()
    return row[0] if row else None


RESPONSE_TIMEOUT = 5.0  # seconds in which a pooler with a free connection responds

# Superusers are exempt from all of these limits but the last.
_LIMITS = """
WITH sessions AS (
  SELECT * FROM pg_stat_activity WHERE usesysid IS NOT NULL AND pid <> pg_backend_pid())
SELECT r.rolname, d.datname, r.rolsuper, r.rolconnlimit, d.datconnlimit,
  current_setting('max_connections')::int,
  current_setting('superuser_reserved_connections')::int
    + coalesce(current_setting('reserved_connections', true), '0')::int,
  (SELECT count(*) FROM sessions WHERE usesysid = r.oid),
  (SELECT count(*) FROM sessions WHERE datid = d.oid),
  (SELECT count(*) FROM sessions)
FROM pg_roles r, pg_database d
WHERE r.rolname = session_user AND d.datname = current_database()"""


class ConnectionLimit(msgspec.Struct, frozen=True):
    """The tightest connection limit: `source` names it, `remedy` is how to raise it."""

    source: str
    most: int
    used: int
    remedy: str

    @property
    def free(self) -> int:
        return max(0, self.most - self.used)


async def tightest_limit(connection: Connection) -> ConnectionLimit:
    """Return the limit with the fewest free connections, not counting this one as used."""
    row = await (await connection.execute(_LIMITS)).fetchone()
    assert row is not None
    role, database, superuser, of_role, of_database, most, reserved, *used = row
    limits = [
        ConnectionLimit(
            f"max_connections is {most}",
            most if superuser else most - reserved,
            used[2],
            "set max_connections = {} in postgresql.conf, and restart PostgreSQL",
        )
    ]
    if of_role >= 0 and not superuser:
        source = f"role {role} has CONNECTION LIMIT {of_role}"
        limits.append(
            ConnectionLimit(source, of_role, used[0], f"ALTER ROLE {role} CONNECTION LIMIT {{}}")
        )
    if of_database >= 0 and not superuser:
        source = f"database {database} has CONNECTION LIMIT {of_database}"
        remedy = f"ALTER DATABASE {database} CONNECTION LIMIT {{}}"
        limits.append(ConnectionLimit(source, of_database, used[1], remedy))
    return min(limits, key=lambda limit: limit.free)


async def is_pooled(connection: Connection) -> bool:
    """Return whether connections go through a pooler, whose own limits cannot be queried."""
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    return row is None or row[0] != connection.info.backend_pid


async def open_at_once(url: str, number: int) -> int:
    """Return how many of `number` connections can be open at once; close them again."""
    async with AsyncExitStack() as stack:

        async def add() -> None:
            connection = await connect(
                url, name="probe", patient=False, answer_timeout=RESPONSE_TIMEOUT
            )
            await stack.enter_async_context(connection)

        results = await asyncio.gather(*(add() for _ in range(number)), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, psycopg.Error):
            raise result
    return sum(result is None for result in results)
