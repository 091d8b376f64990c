"""Many machines: which processes there are, and which blob store belongs to this database."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # Written by each process every few seconds: room on the page keeps the row where it is.
    """CREATE TABLE orchestration.processes (
        id uuid PRIMARY KEY,
        machine text NOT NULL,
        pid integer NOT NULL,
        roles text[] NOT NULL,
        version text NOT NULL,
        worker bigint,
        leads boolean NOT NULL,
        started_at timestamptz NOT NULL DEFAULT now(),
        seen_at timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 50)""",
    """CREATE TABLE orchestration.blob_store (
        only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
        mark text NOT NULL)""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
