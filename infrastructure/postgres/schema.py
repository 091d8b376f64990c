"""Schema of the database: its migrations, run by the first process, and the grants of a serving
role that owns nothing."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
from psycopg.sql import SQL, Composed, Identifier

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


# A serving role has all rights except to alter the log and its seals: the owner migrates and
# rebuilds, the serving role inserts into the log and reads it. It cannot set columns that the
# database fills in, such as positions.

OWN_SCHEMAS = ("read_model", "orchestration", "webhooks", "audit")
EVENT_COLUMNS = ("originator_id", "originator_version", "topic", "state")

# For every schema; _RESTRICTED takes some of these rights back.
_ORDINARY = (
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}",
)
_RESTRICTED = (
    "REVOKE ALL ON stored_events, audit.seals, alembic_version, projections FROM {role}",
    "GRANT SELECT ON stored_events, audit.seals, alembic_version, projections TO {role}",
    "GRANT INSERT ({columns}) ON stored_events TO {role}",
    "GRANT INSERT ON audit.seals TO {role}",
    "REVOKE DELETE ON audit.owner_keys, audit.master_keys, audit.erasures, api_keys FROM {role}",
)
# For tables that a rebuild or a later migration of the owner creates.
_LATER = (
    "ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}",
    "ALTER DEFAULT PRIVILEGES GRANT USAGE, SELECT ON SEQUENCES TO {role}",
    "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO {role}",
    "ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO {role}",
)
# From PostgreSQL 17 on a role may vacuum what it does not own, which an erasure does.
_MAINTAIN = "GRANT MAINTAIN ON ALL TABLES IN SCHEMA {schema} TO {role}"
_MAINTAIN_LATER = "ALTER DEFAULT PRIVILEGES GRANT MAINTAIN ON TABLES TO {role}"


class BadRole(Exception):
    """The role cannot be limited: it is the owner, a superuser, or does not exist."""

    hint = "make one first: CREATE ROLE uptrail_serving LOGIN PASSWORD '...'"


def grant_serving(connection: psycopg.Connection, role: str) -> None:
    """Grant a role the rights to serve, but not to alter the log, in one transaction.

    Raises BadRole, psycopg.Error.
    """
    with connection.transaction():
        _require_limited(connection, role)
        schemas = (_current_schema(connection), *OWN_SCHEMAS)
        maintains = connection.info.server_version >= 170000
        statements = (*_ORDINARY, _MAINTAIN) if maintains else _ORDINARY
        for schema in schemas:
            for statement in statements:
                connection.execute(_compose(statement, role, schema))
        for statement in (*_RESTRICTED, *_LATER, *((_MAINTAIN_LATER,) if maintains else ())):
            connection.execute(_compose(statement, role))


def _require_limited(connection: psycopg.Connection, role: str) -> None:
    found = connection.execute(
        "SELECT r.rolsuper, pg_has_role(r.oid, c.relowner, 'MEMBER') FROM pg_roles r, pg_class c"
        " WHERE r.rolname = %s AND c.oid = 'stored_events'::regclass",
        (role,),
    ).fetchone()
    if found is None:
        raise BadRole(f"there is no role {role}")
    if any(found):
        raise BadRole(
            f"{role} is a superuser or owns the log: whatever is granted, it may alter it"
        )


def _current_schema(connection: psycopg.Connection) -> str:
    found = connection.execute(
        "SELECT relnamespace::regnamespace::text FROM pg_class"
        " WHERE oid = 'stored_events'::regclass"
    ).fetchone()
    assert found is not None
    return str(found[0])


def _compose(statement: str, role: str, schema: str = "") -> Composed:
    return SQL(statement).format(
        role=Identifier(role),
        schema=Identifier(schema),
        columns=SQL(", ").join(map(Identifier, EVENT_COLUMNS)),
    )
