"""The orchestrator's tables, and the job queue's own schema.

`orchestration.members` holds one row an upload, `orchestration.batches` one a batch, each as of
the `version` of its stream. Partial indexes hold only what is under way, so that finished
batches, however many, cost nothing. Source of the queue's schema: `procrastinate.schema`.
"""

from __future__ import annotations

from alembic import op
from procrastinate.schema import SchemaManager

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UNFINISHED = """state IN ('registered', 'transferring', 'received',
                           'queued', 'processing', 'retry_scheduled')"""

_STATEMENTS = (
    "CREATE SCHEMA orchestration",
    """CREATE TABLE orchestration.batches (
        batch uuid PRIMARY KEY,
        owner text NOT NULL,
        state text NOT NULL,
        paused boolean NOT NULL,
        ending text,
        reason text NOT NULL,
        priority integer NOT NULL,
        version bigint NOT NULL,
        started_at timestamptz NOT NULL,
        counts jsonb,
        uploads bigint NOT NULL,
        bytes_received bigint NOT NULL,
        bytes_total bigint NOT NULL,
        progressed_at timestamptz,
        dirty boolean NOT NULL)""",
    "CREATE INDEX batches_dirty ON orchestration.batches (batch) WHERE dirty",
    """CREATE INDEX batches_running ON orchestration.batches (batch)
        WHERE state IN ('open', 'sealed') AND NOT paused""",
    """CREATE INDEX batches_cancelling ON orchestration.batches (batch)
        WHERE state = 'cancelling'""",
    # Rows change several times in a few seconds: room on the page keeps them where they are.
    """CREATE TABLE orchestration.members (
        upload uuid PRIMARY KEY,
        batch uuid NOT NULL,
        owner text NOT NULL,
        state text NOT NULL,
        version bigint NOT NULL,
        size bigint,
        received bigint NOT NULL,
        attempt integer NOT NULL,
        worker text,
        retry_at timestamptz,
        job bigint) WITH (fillfactor = 70)""",
    "CREATE INDEX members_by_batch ON orchestration.members (batch)",
    f"""CREATE INDEX members_unfinished ON orchestration.members (batch)
        WHERE {_UNFINISHED}""",
    """CREATE INDEX members_received ON orchestration.members (batch, upload)
        WHERE state = 'received'""",
    """CREATE INDEX members_in_flight ON orchestration.members (owner, batch)
        WHERE state IN ('queued', 'processing', 'retry_scheduled')""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
    queue = op.get_bind().connection.cursor()
    queue.execute(SchemaManager.get_schema())
    queue.close()
