"""Keys of owners, with which personal fields are encrypted, and erasures of owners."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE audit.owner_keys (
        id uuid PRIMARY KEY,
        owner text NOT NULL,
        key bytea,
        made_at timestamptz NOT NULL DEFAULT now(),
        destroyed_at timestamptz)""",
    "CREATE UNIQUE INDEX owner_keys_one_idx ON audit.owner_keys (owner) WHERE key IS NOT NULL",
    # `key` is cleared, the row stays: it records that what the key encrypted was erased, and when.
    """CREATE TABLE audit.erasures (
        id uuid PRIMARY KEY,
        owner text NOT NULL,
        reason text NOT NULL,
        requested_by text NOT NULL,
        requested_at timestamptz NOT NULL,
        finished_at timestamptz,
        batches bigint NOT NULL DEFAULT 0,
        uploads bigint NOT NULL DEFAULT 0)""",
    "CREATE UNIQUE INDEX erasures_open_idx ON audit.erasures (owner) WHERE finished_at IS NULL",
    "CREATE INDEX erasures_requested_at_idx ON audit.erasures (requested_at, id)",
    # A projector that cannot read encrypted fields must not write rows: theirs is version 2. Of an
    # empty log the rows are right already.
    "UPDATE projections SET version = 3 WHERE NOT EXISTS (SELECT FROM stored_events)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
