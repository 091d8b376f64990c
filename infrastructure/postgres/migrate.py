"""Migrations that bring a database to the schema of this version, run by the first process."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg

from application.projection import VERSION
from infrastructure.postgres.connection import connect_blocking
from infrastructure.postgres.locks import MIGRATION_LOCK

MIGRATIONS = Path(__file__).parent / "migrations"

_REVISION = re.compile(r'^revision\b.*= "(\w+)"$', re.MULTILINE)
_AFTER = re.compile(r"^down_revision\b.*= (.+)$", re.MULTILINE)
_QUOTED = re.compile(r'"(\w+)"')

_OUTDATED_BUT_EMPTY = """SELECT EXISTS (SELECT FROM projections p, notification_tracking t
WHERE p.name = 'read_model' AND p.version < %s
  AND t.application_name = p.name AND t.notification_id = 0)"""
# Takes the lock of a projector that writes, so that one of an earlier version cannot meanwhile.
_SET_VERSION = """WITH tracked AS (SELECT notification_id FROM notification_tracking
  WHERE application_name = 'read_model' FOR UPDATE)
UPDATE projections SET version = %s FROM tracked
WHERE name = 'read_model' AND version < %s AND tracked.notification_id = 0"""


class NewerDatabase(Exception):
    """The database, or its read model, was made by a later version of Uptrail than this one."""


def migrate(url: str) -> None:
    """Apply the migrations of `migrations/versions` that are missing, in one transaction.

    An empty read model is of this version afterwards; others are rebuilt by the projector's start.
    Processes that start at the same time take turns. When nothing is missing, which is the usual
    case, a few milliseconds pass and Alembic is not even imported.
    Raises NewerDatabase, psycopg.Error.
    """
    with connect_blocking(url, name="migration") as connection:
        if not _is_current(connection):
            MIGRATION_LOCK.acquire_blocking(connection)
            if not _is_current(connection):
                _upgrade(url)
        # Asked first: the role that serves may not update this table, and need not.
        found = connection.execute(_OUTDATED_BUT_EMPTY, (VERSION,)).fetchone()
        if found is not None and found[0]:
            connection.execute(_SET_VERSION, (VERSION, VERSION))


def heads() -> set[str]:
    """Return the revisions that no other one follows."""
    lines = [line for text in _scripts() for line in _AFTER.findall(text)]
    return _known() - {revision for line in lines for revision in _QUOTED.findall(line)}


def _known() -> set[str]:
    return {revision for text in _scripts() for revision in _REVISION.findall(text)}


def _scripts() -> list[str]:
    return [path.read_text() for path in sorted((MIGRATIONS / "versions").glob("0*.py"))]


def _is_current(connection: psycopg.Connection) -> bool:
    found = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
    if found is None or found[0] is None:
        return False
    rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    applied = {str(row[0]) for row in rows}
    if unknown := applied - _known():
        raise NewerDatabase(f"the database holds migration {min(unknown)}, unknown to this version")
    return applied == heads()


def _upgrade(url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import NullPool, create_engine

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect_blocking(url, name="migration", autocommit=False),
        poolclass=NullPool,
    )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "heads")
