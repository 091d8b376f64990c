"""Classification of errors of a database that is temporarily unusable."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from application.errors import ApplicationError, Unavailable, Undetermined

LONGEST_BACKOFF = 5.0  # seconds between two attempts of a part that waits for the database

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
_ALWAYS = (
    Unavailable,
    Undetermined,
    PoolTimeout,
    PoolClosed,
    TooManyRequests,
    psycopg.InterfaceError,  # the connection is closed
    ConnectionError,
    TimeoutError,
    socket.gaierror,
)


def is_unusable(error: BaseException | None) -> bool:
    """Return whether an error of the database or the connection is temporary.

    An error of a library counts as what it wraps. A full disk of the blobs, say, is not one.
    """
    if isinstance(error, _ALWAYS):
        return True
    if isinstance(error, psycopg.Error):
        state = error.sqlstate
        if state is None:  # libpq itself: no connection, or it was lost
            return isinstance(error, psycopg.OperationalError)
        return state[:2] in CLASSES or state in STATES
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_unusable, error.exceptions))
    return _of_library(error)


def _of_library(error: BaseException | None) -> bool:
    """Return wrapping error classes of libraries that this process has imported."""
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    if sqlalchemy is not None and isinstance(error, sqlalchemy.DBAPIError):
        return is_unusable(error.orig)
    if sqlalchemy is not None and isinstance(error, sqlalchemy.TimeoutError):  # of its pool
        return True
    procrastinate = sys.modules.get("procrastinate.exceptions")
    if procrastinate is not None and isinstance(error, procrastinate.ConnectorException):
        return is_unusable(error.__cause__)
    return False


@contextmanager
def as_unavailable(what: str = "the database cannot be used") -> Iterator[None]:
    """Convert errors that are `is_unusable` to Unavailable."""
    try:
        yield
    except ApplicationError:
        raise
    except Exception as error:
        if not is_unusable(error):
            raise
        raise Unavailable(f"{what}: {error}") from error


def longer_backoff(backoff: float, error: BaseException, longest: float) -> float:
    """The next pause in seconds: at most `longest`, or LONGEST_BACKOFF while the database is
    unusable, so that every part is back soon after it."""
    return min(2 * backoff, min(longest, LONGEST_BACKOFF) if is_unusable(error) else longest)
