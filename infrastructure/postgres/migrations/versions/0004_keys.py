"""Keys, browser sessions and one-time logins: only hashes of what their holders know."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE TABLE api_keys (
        id text PRIMARY KEY,
        secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
        owner text NOT NULL,
        scope text NOT NULL,
        label text NOT NULL,
        batch uuid,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz,
        revoked_at timestamptz)""",
    "CREATE INDEX api_keys_newest_idx ON api_keys (owner, created_at DESC)",
    *(
        f"""CREATE TABLE {table} (
            token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
            principal jsonb NOT NULL,
            key_id text REFERENCES api_keys,
            expires_at timestamptz NOT NULL)"""
        for table in ("browser_sessions", "login_codes")
    ),
    "CREATE INDEX browser_sessions_expires_at_idx ON browser_sessions (expires_at)",
    "CREATE INDEX login_codes_expires_at_idx ON login_codes (expires_at)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
