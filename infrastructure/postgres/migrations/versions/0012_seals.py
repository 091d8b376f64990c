"""Seals over the log, and beside each the entries of its tree."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "CREATE SCHEMA audit",
    # Names of columns are fields of `application.audit.seals.AuditSeal`.
    """CREATE TABLE audit.seals (
        number bigint PRIMARY KEY,
        after bigint NOT NULL,
        through bigint NOT NULL,
        count bigint NOT NULL,
        root bytea NOT NULL,
        previous bytea NOT NULL,
        at timestamptz NOT NULL,
        key bytea NOT NULL,
        next_key bytea,
        signature bytea NOT NULL,
        entries bytea NOT NULL)""",
    # Hashes do not get smaller, only slower.
    "ALTER TABLE audit.seals ALTER entries SET STORAGE EXTERNAL",
    "CREATE UNIQUE INDEX ON audit.seals (through, number)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
