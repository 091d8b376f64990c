"""Errands: what workers wait for, and services answer by way of any API process."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE errands (
        id uuid PRIMARY KEY,
        upload uuid NOT NULL,
        attempt integer NOT NULL,
        callback_hash bytea NOT NULL UNIQUE CHECK (length(callback_hash) = 32),
        download_hash bytea NOT NULL UNIQUE CHECK (length(download_hash) = 32),
        opened_at timestamptz NOT NULL DEFAULT now(),
        download_until timestamptz NOT NULL,
        downloaded_at timestamptz,
        done bigint,
        total bigint,
        answer bytea)""",
    "CREATE INDEX errands_opened_at_idx ON errands (opened_at)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
