"""Errors of the database: which are transient, and their translation to Unavailable."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from application.errors import ApplicationError, OutcomeUnknown, Unavailable

DATABASE_UNAVAILABLE = "the database cannot be used"

# PostgreSQL manual, appendix A: what passes without anything being wrong with the statement.
CLASSES = frozenset(
    {
        "08",  # connection exception, also pgbouncer's own errors
        "53",  # insufficient resources: disk full, out of memory, too many connections
        "57",  # operator intervention: shutdown, starting up, cancelled, idle session ended
        "58",  # system error: an I/O error, a missing file
    }
)
STATES = frozenset(
    {
        "25006",  # read-only transaction: a standby, or default_transaction_read_only
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
        "40001",  # serialization failure, also a conflict with recovery on a standby
        "40P01",  # deadlock
        "55P03",  # lock_timeout
        "72000",  # snapshot too old
    }
)


class LeadershipLost(Exception):
    """Another process has taken over: what this one read is outdated, and was not saved."""


_ALWAYS = (
    LeadershipLost,
    Unavailable,
    OutcomeUnknown,
    PoolTimeout,
    PoolClosed,
    TooManyRequests,
    psycopg.InterfaceError,  # the connection is closed
    ConnectionError,
    TimeoutError,
    socket.gaierror,
)


def is_transient(error: BaseException | None) -> bool:
    """Return whether the same work may succeed later, because the database is unusable now.

    An error of a library counts as the error it wraps. A full disk of the blob store, for example,
    is no error of the database.
    """
    if isinstance(error, _ALWAYS):
        return True
    if isinstance(error, psycopg.Error):
        state = error.sqlstate
        if state is None:  # libpq itself: no connection, or it was lost
            return isinstance(error, psycopg.OperationalError)
        return state[:2] in CLASSES or state in STATES
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_transient, error.exceptions))
    return _of_library(error)


def _of_library(error: BaseException | None) -> bool:
    """Return whether a library wraps a transient error; those not imported here raise none."""
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    if sqlalchemy is not None and isinstance(error, sqlalchemy.DBAPIError):
        return is_transient(error.orig)
    if sqlalchemy is not None and isinstance(error, sqlalchemy.TimeoutError):  # of its pool
        return True
    procrastinate = sys.modules.get("procrastinate.exceptions")
    if procrastinate is not None and isinstance(error, procrastinate.ConnectorException):
        return is_transient(error.__cause__)
    return False


@contextmanager
def transient_as_unavailable(message: str = DATABASE_UNAVAILABLE) -> Iterator[None]:
    """Raise Unavailable in place of transient errors; `message` is how its text begins."""
    try:
        yield
    except ApplicationError:
        raise
    except Exception as error:
        if not is_transient(error):
            raise
        raise Unavailable(f"{message}: {error}") from error
