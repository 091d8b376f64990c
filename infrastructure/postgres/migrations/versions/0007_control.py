"""Control: last activity of a batch, its failure threshold, pending retries.

`orchestration.retries` holds one row for each batch whose failed uploads are processed again:
those up to the id `after` have been.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """ALTER TABLE orchestration.batches
        ADD active_at timestamptz NOT NULL DEFAULT now(),
        ADD failure_threshold double precision,
        ADD pardoned bigint NOT NULL DEFAULT 0""",
    "ALTER TABLE orchestration.batches ALTER active_at DROP DEFAULT",
    # A batch that is under way keeps the threshold it was started with.
    """UPDATE orchestration.batches b SET failure_threshold =
        (convert_from(e.state, 'UTF8')::jsonb #>> '{event,failure_threshold}')::double precision
        FROM stored_events e
        WHERE e.originator_id = b.batch AND e.originator_version = 1 AND b.state <> 'completed'""",
    "CREATE INDEX batches_open ON orchestration.batches (active_at) WHERE state = 'open'",
    """CREATE TABLE orchestration.retries (
        batch uuid PRIMARY KEY,
        after uuid NOT NULL)""",
    """CREATE INDEX members_failed ON orchestration.members (batch, upload)
        WHERE state = 'failed'""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
