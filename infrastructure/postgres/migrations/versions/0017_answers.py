"""Idempotency records are kept for a while only: an index by when they were made."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX command_answers_by_time ON command_answers (answered_at)")
