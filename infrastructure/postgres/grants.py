"""Grants for a serving role that owns nothing: all rights except to alter the log and its seals.

The owner migrates and rebuilds; the serving role inserts into the log and reads it. It cannot set
columns that the database fills in, such as positions.
"""

from __future__ import annotations

import psycopg
from psycopg.sql import SQL, Composed, Identifier

OWN_SCHEMAS = ("read_model", "orchestration", "webhooks", "audit")
EVENT_COLUMNS = ("originator_id", "originator_version", "topic", "state")

# For every schema; _STRICT takes some of these rights back.
_SCHEMA = (
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}",
)
_STRICT = (
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
        statements = (*_SCHEMA, _MAINTAIN) if maintains else _SCHEMA
        for schema in schemas:
            for statement in statements:
                connection.execute(_compose(statement, role, schema))
        for statement in (*_STRICT, *_LATER, *((_MAINTAIN_LATER,) if maintains else ())):
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
