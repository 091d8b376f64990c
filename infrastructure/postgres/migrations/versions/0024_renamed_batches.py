"""An empty log has the rows of version 6, with renamed batches: a first start rebuilds nothing."""

from __future__ import annotations

from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("UPDATE projections SET version = 6 WHERE NOT EXISTS (SELECT FROM stored_events)")
