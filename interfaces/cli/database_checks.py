"""What `uptrail doctor` asks the database: who it is, what time it is, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg

from infrastructure.event_store.guard import UnsafeWriter, refuse_database_functions
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.connection_limits import tightest_limit
from infrastructure.postgres.database_url import BadDatabaseUrl
from infrastructure.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError
from infrastructure.postgres.migrate import heads
from infrastructure.postgres.requirements import examine
from infrastructure.settings import Settings
from interfaces.bootstrap.connections import needs_of_server
from interfaces.bootstrap.role import ALL_ROLES
from interfaces.cli.checks import Finding, Level
from interfaces.cli.machine_checks import machines

CLOCK_OFF = 2.0  # seconds
FAR_BEHIND = 10_000  # positions


async def database(settings: Settings) -> list[Finding]:
    """Everything the database can tell; one failed finding where it cannot be asked."""
    try:
        async with _reached(settings) as url:
            if url is None:
                told = "none is named: an embedded one is made at the first start, for this machine"
                return [Finding(Level.OK, "database", told)]
            return await _examined(url, settings)
    except (psycopg.Error, EmbeddedPostgresError, OSError, BadDatabaseUrl) as error:
        advice = "check UPTRAIL_DATABASE_URL" if settings.database_url else "see what it says"
        return [Finding(Level.FAIL, "database", str(error).strip(), advice)]


async def _examined(url: str, settings: Settings) -> list[Finding]:
    """What every start requires first: where that fails, no more is asked."""
    required = [
        Finding(Level(verdict.grade), verdict.check, verdict.detail, verdict.advice)
        for verdict in await examine(url)
    ]
    if any(finding.level is Level.FAIL for finding in required):
        return required
    async with await connect(url, name="doctor") as connection:
        return [
            await _version(connection),
            await _clock(connection),
            *required,
            await _connections(connection, settings),
            *await _schema(connection, settings),
        ]


@asynccontextmanager
async def _reached(settings: Settings) -> AsyncIterator[str | None]:
    """The URL; None where an embedded server was never made: a look must not make one."""
    if settings.database_url:
        yield settings.database_url
    elif not (settings.data_dir / "postgres").exists():
        yield None
    else:
        server = EmbeddedPostgres(settings.data_dir)
        url = await asyncio.to_thread(server.start)
        try:
            yield url
        finally:
            await asyncio.to_thread(server.stop)


async def _version(connection: Connection) -> Finding:
    number = connection.info.server_version
    return Finding(Level.OK, "database", f"PostgreSQL {number // 10_000}.{number % 10_000}")


async def _connections(connection: Connection, settings: Settings) -> Finding:
    """Whether the limits leave room for a server with every role: those in use may be its own."""
    needs = needs_of_server(settings, ALL_ROLES)
    least, most = sum(need.least for need in needs), sum(need.most for need in needs)
    limit = await tightest_limit(connection)
    detail = f"{limit.source}, {limit.used} in use; a server needs {least} to {most}"
    advice = limit.remedy.format(most)
    if limit.most < least:
        return Finding(Level.FAIL, "connections", detail, advice)
    if limit.most < most:
        return Finding(Level.WARN, "connections", detail, advice)
    return Finding(Level.OK, "connections", detail)


async def _clock(connection: Connection) -> Finding:
    theirs = await _one(connection, "SELECT clock_timestamp()")
    off = abs((datetime.now(UTC) - theirs).total_seconds())
    if off > CLOCK_OFF:
        told = f"{off:.0f} s apart from the database's"
        return Finding(Level.WARN, "clock", told, "set the clocks by NTP: retries go by them")
    return Finding(Level.OK, "clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")


async def _schema(connection: Connection, settings: Settings) -> list[Finding]:
    try:
        await refuse_database_functions(connection)
    except UnsafeWriter as error:
        return [Finding(Level.FAIL, "event log", str(error), "drop the function")]
    if await _one(connection, "SELECT to_regclass('alembic_version')") is None:
        return [Finding(Level.OK, "schema", "made at the first start")]
    cursor = await connection.execute("SELECT version_num FROM alembic_version")
    applied = {row[0] for row in await cursor.fetchall()}
    if applied != heads():
        told = f"migration {', '.join(sorted(applied))}, not {', '.join(sorted(heads()))}"
        return [Finding(Level.WARN, "schema", told, "the next start of the server migrates it")]
    return [
        Finding(Level.OK, "schema", f"migration {', '.join(sorted(applied))}"),
        *[await _behind(connection, name) for name in ("read_model", "orchestrator")],
        await _jobs(connection, settings),
        *await machines(connection, settings),
    ]


async def _behind(connection: Connection, name: str) -> Finding:
    query = """SELECT coalesce(max(notification_id), 0) - coalesce((SELECT notification_id
        FROM notification_tracking WHERE application_name = %s), 0) FROM stored_events"""
    behind = await _one(connection, query, name)
    check, told = name.replace("_", " "), f"{behind} positions behind the log"
    if behind > FAR_BEHIND:
        advice = "is a server with the role orchestrator running? its log tells of errors"
        return Finding(Level.WARN, check, told, advice)
    return Finding(Level.OK, check, told)


async def _jobs(connection: Connection, settings: Settings) -> Finding:
    query = """SELECT count(*) FILTER (WHERE j.status = 'todo'),
        count(*) FILTER (WHERE j.status = 'doing'),
        count(*) FILTER (WHERE j.status = 'doing' AND (w.id IS NULL OR
            w.last_heartbeat < now() - make_interval(secs => %s)))
        FROM procrastinate_jobs j LEFT JOIN procrastinate_workers w ON w.id = j.worker_id"""
    cursor = await connection.execute(query, (settings.worker_dead_after,))
    waiting, running, stalled = await cursor.fetchone() or (0, 0, 0)
    told = f"{waiting} waiting, {running} running"
    if stalled:
        told += f", {stalled} left by a dead worker"
        advice = "a running orchestrator gives them to another worker by itself"
        return Finding(Level.WARN, "jobs", told, advice)
    return Finding(Level.OK, "jobs", told)


async def _one(connection: Connection, query: str, *values: object) -> Any:
    cursor = await connection.execute(query.encode(), values or None)
    row = await cursor.fetchone()
    return row[0] if row else None
