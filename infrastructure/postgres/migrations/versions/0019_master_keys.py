"""Keys of owners are encrypted with a master key that is outside of the database.

Those that exist are encrypted by the first process that starts
(`infrastructure.erasure.wrapped_keys`):
the master key is not the database's. The column is renamed so that processes of an earlier version,
which would take an encrypted key for a destroyed one, fail instead.
"""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # `proof` is a known text, encrypted: a process checks its master key with it.
    """CREATE TABLE audit.master_keys (
        id text PRIMARY KEY,
        proof bytea NOT NULL,
        current boolean NOT NULL,
        made_at timestamptz NOT NULL DEFAULT now(),
        retired_at timestamptz,
        destroyed_at timestamptz)""",
    "CREATE UNIQUE INDEX master_keys_current_idx ON audit.master_keys (current) WHERE current",
    "ALTER TABLE audit.owner_keys RENAME COLUMN key TO unwrapped",
    "ALTER TABLE audit.owner_keys ADD wrapped bytea, ADD master text REFERENCES audit.master_keys",
    """UPDATE audit.owner_keys SET destroyed_at = now()
        WHERE unwrapped IS NULL AND destroyed_at IS NULL""",
    "DROP INDEX audit.owner_keys_one_idx",
    """CREATE UNIQUE INDEX owner_keys_one_idx ON audit.owner_keys (owner)
        WHERE destroyed_at IS NULL""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
