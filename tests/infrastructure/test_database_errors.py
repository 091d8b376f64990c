"""Classification of database errors into transient and permanent ones."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import psycopg
import pytest
import sqlalchemy.exc
from procrastinate.exceptions import ConnectorException
from psycopg_pool import PoolClosed, PoolTimeout

from application.errors import NotFound, OutcomeUnknown, Unavailable
from infrastructure.database_errors import is_transient, transient_as_unavailable
from infrastructure.postgres.connection import connect
from infrastructure.postgres.pool import make_pool
from interfaces.bootstrap import tasks
from interfaces.common.problems import problem_of


def of_state(state: str) -> psycopg.Error:
    return psycopg.errors.lookup(state)("reported by the server")


def wrapped(error: Exception) -> ConnectorException:
    outer = ConnectorException()
    outer.__cause__ = error
    return outer


PASSING = [
    *map(of_state, ("08006", "08P01", "53100", "53200", "53300", "57014", "57P01", "57P02")),
    *map(of_state, ("57P03", "57P05", "58030", "25006", "25P03", "40001", "40P01", "55P03")),
    psycopg.OperationalError("connection refused"),
    psycopg.errors.ConnectionTimeout("the server was silent"),
    psycopg.InterfaceError("the connection is closed"),
    PoolTimeout(),
    PoolClosed(),
    Unavailable("no"),
    OutcomeUnknown("no"),
    ConnectionResetError(),
    TimeoutError(),
    socket.gaierror(),
    wrapped(of_state("25006")),
    sqlalchemy.exc.InternalError("SELECT", {}, of_state("25006")),
    sqlalchemy.exc.OperationalError("SELECT", {}, of_state("57P01")),
    sqlalchemy.exc.TimeoutError(),
    ExceptionGroup("all", [TimeoutError(), of_state("53300")]),
]

LASTING = [
    *map(of_state, ("23505", "42P01", "42501", "42601", "22001", "0A000", "XX000")),
    psycopg.DataError("a NUL byte"),
    wrapped(of_state("42P01")),
    sqlalchemy.exc.ProgrammingError("SELECT", {}, of_state("42P01")),
    OSError(28, "No space left on device"),
    NotFound("no"),
    ValueError(),
    ExceptionGroup("some", [TimeoutError(), ValueError()]),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: f"{type(error).__name__}")
def test_an_error_that_passes_by_itself_is_transient(error: Exception) -> None:
    assert is_transient(error)
    if not isinstance(error, OSError):
        problem = problem_of(error)
        assert problem.status == 503
        assert problem.headers["Retry-After"]


@pytest.mark.parametrize("error", LASTING, ids=lambda error: f"{type(error).__name__}")
def test_an_error_that_does_not_pass_by_itself_is_not_transient(error: Exception) -> None:
    assert not is_transient(error)
    with pytest.raises(type(error)), transient_as_unavailable():
        raise error


def test_an_unknown_outcome_is_not_reported_as_nothing_recorded() -> None:
    with pytest.raises(OutcomeUnknown), transient_as_unavailable():
        raise OutcomeUnknown("the log was lost while it recorded")


async def test_a_part_that_waits_for_the_database_is_never_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "MIN_RESTART_PAUSE", 0.001)
    monkeypatch.setattr(tasks, "MAX_OUTAGE_PAUSE", 0.001)
    starts = SimpleNamespace(count=0)

    async def waiting() -> None:
        starts.count += 1
        if starts.count <= 3 * tasks.MAX_RESTARTS:
            raise of_state("25006")
        await asyncio.Event().wait()

    part = asyncio.create_task(tasks.supervise("part", waiting))
    while starts.count <= 3 * tasks.MAX_RESTARTS:
        await asyncio.sleep(0.001)
        assert not part.done()
    part.cancel()


async def test_a_connection_that_is_one_too_many_is_transient_for_now(database_url: str) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]

    async with await connect(database_url, name="test") as own:
        await own.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 1".encode())
        try:
            async with make_pool(database_url, name="late", min_size=0) as pool:
                with pytest.raises(Unavailable), transient_as_unavailable():
                    await pool.getconn(timeout=0.5)
                # The pool is there again as soon as the database is, without a new borrower.
                waiting = asyncio.create_task(pool.getconn(timeout=60))
                await asyncio.sleep(0)
                await own.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1".encode())
                await pool.putconn(await waiting)
        finally:
            await own.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1".encode())
