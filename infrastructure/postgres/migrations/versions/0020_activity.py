"""Times of the last activity of a batch, of the last arrival, and of its pause."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """ALTER TABLE read_model.batches
        ADD active_at timestamptz NOT NULL DEFAULT now(),
        ADD arrived_at timestamptz,
        ADD paused_at timestamptz""",
    # Until the rows that are there are built anew from the log, at the next start.
    "UPDATE read_model.batches SET active_at = updated_at",
    "UPDATE projections SET version = 5 WHERE NOT EXISTS (SELECT FROM stored_events)",
    "ALTER TABLE orchestration.batches ADD arrived_at timestamptz",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
