"""Faults that PostgreSQL itself injects: sessions that end, statements that fail or wait.

Sequences count on whatever becomes of a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg.sql import SQL, Literal

KILLS = 3  # sessions that end before the others are spared

_END_SESSIONS = """
CREATE SEQUENCE IF NOT EXISTS kills;
CREATE OR REPLACE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF current_setting('application_name') = '{application}' THEN
    IF nextval('kills') <= {kills} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
  END IF;
  RETURN NULL;
END $$;
ALTER SEQUENCE kills RESTART;
CREATE CONSTRAINT TRIGGER end_session AFTER INSERT OR UPDATE ON {table}
DEFERRABLE INITIALLY {moment} FOR EACH ROW EXECUTE FUNCTION end_session()"""

COUNT_KILLS = "SELECT last_value FROM kills"


def end_sessions(application: str, table: str, moment: str) -> str:
    """End the first sessions of this application that insert or update a row of the table.

    A deferred constraint trigger runs in COMMIT itself: there is no later moment.
    """
    return _END_SESSIONS.format(application=application, kills=KILLS, table=table, moment=moment)


def spare_sessions(table: str) -> str:
    return f"DROP TRIGGER end_session ON {table}"


# Sessions wait for the advisory lock that the test holds.
_BLOCK_UPLOADS = """
CREATE SEQUENCE files_received;
CREATE FUNCTION block_upload() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF nextval('files_received') > {files} THEN PERFORM pg_advisory_xact_lock_shared(7); END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER block_upload AFTER INSERT ON stored_events FOR EACH ROW
WHEN (NEW.topic = 'upload.file_received') EXECUTE FUNCTION block_upload()"""

_UNBLOCK_UPLOADS = "DROP FUNCTION block_upload CASCADE; DROP SEQUENCE files_received"


@contextmanager
def block_uploads_after(database_url: str, files: int) -> Iterator[Callable[[], bool]]:
    """No more than so many files are recorded as received; yields whether one is blocked."""
    with psycopg.connect(database_url, autocommit=True) as database:

        def is_blocked() -> bool:
            row = database.execute("SELECT last_value FROM files_received").fetchone()
            return row is not None and row[0] > files

        database.execute(SQL(_BLOCK_UPLOADS).format(files=Literal(files)))
        database.execute("SELECT pg_advisory_lock(7)")
        try:
            yield is_blocked
        finally:
            database.execute("SELECT pg_advisory_unlock(7)")
            database.execute(_UNBLOCK_UPLOADS)
