"""Rebuild the read model of existing databases: rows of version 3 may hold values of other streams.

The projection of version 3 merged events into a mapping that all folds of a process shared
(docs/decisions/0025-tenant-isolation-and-verification.md, "Shared state in the projection"). Wrong
rows cannot be recognised, so the next start rebuilds all of them from the log.
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# Rows of an empty log need no rebuild. Others keep version 3, which makes the next start rebuild
# them, and keeps a process of the previous version from writing to them afterwards.
_STATEMENT = "UPDATE projections SET version = 4 WHERE NOT EXISTS (SELECT FROM stored_events)"


def upgrade() -> None:
    op.execute(_STATEMENT)
