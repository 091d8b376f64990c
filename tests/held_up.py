"""Senders that are held up at the database, so that a test may kill them on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg.sql import SQL, Literal

# A sequence goes on counting whatever becomes of the transaction.
_HOLD_UP = """
CREATE SEQUENCE files_arrived;
CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF nextval('files_arrived') > {files} THEN PERFORM pg_advisory_xact_lock_shared(7); END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER hold_up AFTER INSERT ON stored_events FOR EACH ROW
WHEN (NEW.topic = 'upload.file_received') EXECUTE FUNCTION hold_up()"""

_LET_GO = "DROP FUNCTION hold_up CASCADE; DROP SEQUENCE files_arrived"


@contextmanager
def held_up(database_url: str, files: int) -> Iterator[Callable[[], bool]]:
    """Nobody records that more than so many files have arrived; gives whether somebody tried."""
    with psycopg.connect(database_url, autocommit=True) as database:

        def somebody_waits() -> bool:
            row = database.execute("SELECT last_value FROM files_arrived").fetchone()
            return row is not None and row[0] > files

        database.execute(SQL(_HOLD_UP).format(files=Literal(files)))
        database.execute("SELECT pg_advisory_lock(7)")
        try:
            yield somebody_waits
        finally:
            database.execute("SELECT pg_advisory_unlock(7)")
            database.execute(_LET_GO)
