"""Idempotency records have an owner, whose erasure deletes them whatever they hold.

Records of processes of an earlier version have none; they are found by the id in their body.
"""

from __future__ import annotations

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE command_answers ADD owner text")
