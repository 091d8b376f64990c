"""Connection factory for PostgreSQL: every connection of Uptrail is opened and configured here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, LiteralString, TypeAlias, TypeVar

import psycopg
import structlog
from psycopg import AsyncConnection, AsyncCursor, BaseConnection
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.errors import ConnectionTimeout, _WaitTimeout
from psycopg.rows import TupleRow

from infrastructure.postgres.database_url import (
    DURABLE,
    REQUIRED,
    SINCE_17,
    BadDatabaseUrl,
    parse_database_url,
)

Connection: TypeAlias = AsyncConnection[TupleRow]
Cursor: TypeAlias = AsyncCursor[TupleRow]
T = TypeVar("T")

# No statement of a request takes so long: it is answered or refused by then.
RESPONSE_TIMEOUT = 15.0  # seconds until a connection whose server is silent is closed
STATEMENT_TIMEOUT = "12s"  # after which a running server ends the statement itself
PROBE_INTERVAL = 15.0  # seconds of silence after which the server of a long statement is probed

# A client that vanished holds its locks until the server probes the connection, by default after
# two hours. See PostgreSQL's `tcp_keepalives_idle` and `tcp_user_timeout`.
_KEEPALIVES = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

_SET = b"""
SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)"""
_SET_DURABLE = f"""
SELECT set_config(name, CASE WHEN current_setting(name) IN {DURABLE} THEN current_setting(name)
    ELSE 'on' END, false) FROM (SELECT 'synchronous_commit' AS name) AS s""".encode()  # noqa: S608

_REFUSED = (  # by the server, for a setting that cannot be applied
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidParameterValue,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.CantChangeRuntimeParam,
)

_log = structlog.get_logger(__name__)

_last_host: dict[str, tuple[str, str, str]] = {}  # by URL: where the last connection was made


class TimedConnection(AsyncConnection[TupleRow]):
    """Connection with a deadline for every response of the server.

    TCP cannot detect this: the kernel of a server whose processes are stopped still acknowledges.
    """

    answer_timeout = RESPONSE_TIMEOUT

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.made_at = asyncio.get_running_loop().time()
        self.is_outdated = False  # then connections made before this one are outdated, too

    async def __aexit__(self, *exc_info: Any) -> None:
        """Close also if cancelled while rolling back, where psycopg leaves the connection open."""
        try:
            await super().__aexit__(*exc_info)
        except asyncio.CancelledError:
            if not hasattr(self, "_pool"):
                await self.close()
            raise

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Consume a generator as psycopg does, with a deadline where the caller sets none.

        Raises psycopg.errors.ConnectionTimeout, and the connection is closed then.
        """
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        try:
            return await super().wait(gen, interval, self.answer_timeout)
        except _WaitTimeout:
            return await self._waited_too_long(gen, interval)

    async def _waited_too_long(self, gen: PQGen[T], interval: float) -> T:
        self._give_up()
        raise ConnectionTimeout(f"the server was silent for {self.answer_timeout:g} s")

    def _give_up(self) -> None:
        self.is_outdated = True
        self.pgconn.finish()


class PatientConnection(TimedConnection):
    """Connection for long statements, closed only if its server does not respond to another
    connection either."""

    answer_timeout = PROBE_INTERVAL

    async def _waited_too_long(self, gen: PQGen[T], interval: float) -> T:
        while True:
            try:
                await self._probe()
            except ConnectionTimeout as error:
                self._give_up()
                raise ConnectionTimeout(f"the server does not respond: {error}") from error
            except psycopg.Error as error:  # it responds, if only that it is full
                _log.debug("probe_refused", error=str(error))
            try:
                return await super(TimedConnection, self).wait(gen, interval, PROBE_INTERVAL)
            except _WaitTimeout:
                continue

    async def _probe(self) -> None:
        """Connect to the same server once more. Raises psycopg.Error."""
        info = self.info
        place = {"host": info.host, "port": str(info.port), "target_session_attrs": "any"}
        if info.hostaddr:
            place["hostaddr"] = info.hostaddr
        parameters = {
            key: value for key, value in info.get_parameters().items() if key not in place
        }
        if info.password:
            parameters["password"] = info.password
        probe = await TimedConnection.connect(make_conninfo("", **parameters, **place))
        await probe.close()


async def connect(
    url: str,
    *,
    name: str,
    settings: Mapping[str, str] | None = None,
    patient: bool = True,
    answer_timeout: float | None = None,
) -> Connection:
    """Open a connection in autocommit mode; `name` is its application_name.

    `settings` are of this session, besides those that every session states. A connection that is
    not `patient` is given up after ANSWER_TIMEOUT, or `answer_timeout` seconds, whether or not its
    server lives.
    Raises psycopg.Error when the server cannot be reached, BadDatabaseUrl.
    """
    kind = PatientConnection if patient else TimedConnection
    connection = await kind.connect(conninfo(url, name), autocommit=True)
    if answer_timeout is not None:
        connection.answer_timeout = answer_timeout
    try:
        await set_up(connection, url, settings)
    except BaseException:
        await connection.close()
        raise
    return connection


def connect_blocking(url: str, *, name: str, autocommit: bool = True) -> psycopg.Connection:
    """Like `connect`, without an event loop."""
    connection = psycopg.connect(conninfo(url, name), autocommit=True)
    try:
        with _refusals():
            for query, values in _statements(url, connection, None):
                connection.execute(query, values)
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    _note_host(url, connection)
    return connection


async def fetch_rows(
    connection: Connection, query: LiteralString, *parameters: object
) -> list[tuple[Any, ...]]:
    """Return every row of a query, transferred in PostgreSQL's binary format.

    Raises psycopg.Error.
    """
    cursor = connection.cursor(binary=True)
    await cursor.execute(query, parameters)
    return await cursor.fetchall()


def conninfo(url: str, name: str) -> str:
    """Return the connection string for libpq, with the host last reached first."""
    return parse_database_url(url).conninfo(name, _last_host.get(url))


async def set_up(
    connection: Connection, url: str, settings: Mapping[str, str] | None = None
) -> None:
    """Set the parameters of a new session. Raises BadDatabaseUrl, psycopg.Error."""
    with _refusals():
        for query, values in _statements(url, connection, settings):
            await connection.execute(query, values)
    _note_host(url, connection)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except _REFUSED as error:
        raise BadDatabaseUrl(f"a setting of the session is refused: {error}") from error


def _statements(
    url: str, connection: BaseConnection[Any], settings: Mapping[str, str] | None
) -> Iterator[tuple[bytes, tuple[Any, ...] | None]]:
    """Return queries and their values: settings of the URL first, of this session last."""
    wanted = {**parse_database_url(url).session, **REQUIRED, **_KEEPALIVES}
    if connection.info.server_version >= 170000:
        wanted |= SINCE_17
    yield _SET, (list(wanted), list(wanted.values()))
    yield _SET_DURABLE, None
    if settings:
        yield _SET, (list(settings), list(settings.values()))


def _note_host(url: str, connection: BaseConnection[Any]) -> None:
    """Remember the server, so that after a failover no connection tries the lost one first."""
    hosts = parse_database_url(url).hosts
    if len(hosts) < 2:
        return
    info = connection.info
    for host, address, port in hosts:
        if (
            host in ("", info.host)
            and address in ("", info.hostaddr)
            and int(port or 5432) == info.port
        ):
            _last_host[url] = (host, address, port)
            return
