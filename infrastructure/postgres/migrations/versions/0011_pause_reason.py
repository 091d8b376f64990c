"""Reason of a pause; existing rows get theirs when the read model is rebuilt."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE read_model.batches ADD pause_reason text",
    # Of an empty log the rows are right already.
    "UPDATE projections SET version = 2 WHERE NOT EXISTS (SELECT FROM stored_events)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
