"""Number of connections that PostgreSQL, or a pooler in front of it, still allows this role."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import msgspec
import psycopg

from infrastructure.postgres.connection import Connection, connect

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
