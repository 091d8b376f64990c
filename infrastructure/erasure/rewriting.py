"""Rewrite tables and indexes that held personal fields in the clear, after an erasure.

PostgreSQL leaves old rows in the free space of their pages, entries in indexes, samples of values
in its statistics, and all of it in the WAL. Tables and indexes that are written anew, with new
statistics, hold nothing old; the files they replace are removed. Every part may be done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import LiteralString

import psycopg
import structlog

from application.ports.event_log import EventLog
from infrastructure.postgres.pool import Connection
from infrastructure.read_model.rebuild import rebuild

# Small tables, rewritten under an exclusive lock that is held only briefly.
TABLES: tuple[LiteralString, ...] = (
    "stored_snapshots",
    "errands",
    "command_answers",
    "orchestration.batches",
    "webhooks.deliveries",
    "audit.owner_keys",
)
READ_MODEL: tuple[LiteralString, ...] = (
    "read_model.batches",
    "read_model.uploads",
    "read_model.attempts",
)
MAX_REWRITTEN = 256 * 1024 * 1024  # bytes: a larger table is vacuumed in place
LOCK_TIMEOUT = "500ms"  # for which readers may have to queue behind a rewrite
TRIES = 20
MAX_SEGMENTS = 256  # of the WAL that are overwritten: 4 GiB

_SIZE = "SELECT pg_total_relation_size(%s::regclass)"
_SET_TIMEOUT = "SELECT set_config('lock_timeout', %s, false)"
_MAY_REWRITE_STATISTICS = """SELECT rolsuper OR EXISTS (
    SELECT FROM pg_roles m WHERE m.rolname = 'pg_maintain' AND pg_has_role(m.oid, 'USAGE'))
FROM pg_roles WHERE rolname = current_user"""
_MAY_SWITCH = """SELECT has_function_privilege('pg_switch_wal()', 'EXECUTE')
AND has_function_privilege('pg_ls_waldir()', 'EXECUTE')
AND (SELECT rolsuper OR EXISTS (SELECT FROM pg_roles c
        WHERE c.rolname = 'pg_checkpoint' AND pg_has_role(c.oid, 'USAGE'))
    FROM pg_roles WHERE rolname = current_user)"""
_SEGMENTS = "SELECT count(*) FROM pg_ls_waldir()"

_log = structlog.get_logger(__name__)


async def rewrite(connection: Connection, url: str, log: EventLog) -> None:
    """Rewrite the tables, then their statistics, then the WAL, as far as the role may.

    Raises psycopg.Error, Unavailable.
    """
    await _rewrite_read_model(connection, url, log)
    for table in TABLES:
        await _rewrite_table(connection, table)
    if await _may(connection, _MAY_REWRITE_STATISTICS):
        await _patiently(connection, "VACUUM FULL pg_catalog.pg_statistic")
    else:
        _log.info("statistics_not_rewritten", advice="VACUUM FULL pg_statistic as a superuser")
    if await _may(connection, _MAY_SWITCH):
        await _overwrite_wal(connection)
    else:
        _log.info("wal_not_overwritten", advice="it holds personal fields until it is recycled")


async def _rewrite_read_model(connection: Connection, url: str, log: EventLog) -> None:
    """Rebuild the read model beside the live one, which stays in use until the swap."""
    try:
        await rebuild(url, log)
    except psycopg.errors.InsufficientPrivilege:
        _log.warning("read_model_not_rewritten", advice="uptrail projection rebuild as the owner")
        for table in READ_MODEL:
            await connection.execute(f"VACUUM (ANALYZE) {table}".encode())


async def _rewrite_table(connection: Connection, table: LiteralString) -> None:
    row = await (await connection.execute(_SIZE, (table,))).fetchone()
    small = row is not None and row[0] <= MAX_REWRITTEN
    if small and await _patiently(connection, f"VACUUM (FULL, ANALYZE) {table}"):
        return
    await connection.execute(f"VACUUM (ANALYZE) {table}".encode())
    _log.info("table_vacuumed_only", table=table)


async def _patiently(connection: Connection, statement: LiteralString) -> bool:
    """Retry with a short lock timeout; return whether it succeeded."""
    for _ in range(TRIES):
        try:
            async with _lock_timeout(connection):
                await connection.execute(statement)
        except psycopg.errors.LockNotAvailable:
            await asyncio.sleep(0.2)
        else:
            return True
    return False


@asynccontextmanager
async def _lock_timeout(connection: Connection) -> AsyncIterator[None]:
    row = await (await connection.execute("SHOW lock_timeout")).fetchone()
    before = row[0] if row else "0"
    await connection.execute(_SET_TIMEOUT, (LOCK_TIMEOUT,))
    try:
        yield
    finally:
        if not connection.closed:
            await connection.execute(_SET_TIMEOUT, (before,))


async def _overwrite_wal(connection: Connection) -> None:
    """Switch WAL segments until every existing one, used or recycled, is overwritten.

    The rest of a segment that is left is filled with zeros. Segments that hold old rows now become
    ones that are kept for later at the next checkpoint: a second round overwrites those.
    """
    for _ in range(2):
        await connection.execute("CHECKPOINT")
        row = await (await connection.execute(_SEGMENTS)).fetchone()
        for _ in range(min(row[0] if row else 0, MAX_SEGMENTS) + 1):
            await connection.execute("SELECT pg_logical_emit_message(false, 'uptrail', '')")
            await connection.execute("SELECT pg_switch_wal()")
    await connection.execute("CHECKPOINT")


async def _may(connection: Connection, query: LiteralString) -> bool:
    row = await (await connection.execute(query)).fetchone()
    return bool(row and row[0])
