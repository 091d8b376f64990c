"""Notify every process when a key or browser session is revoked, by trigger."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE FUNCTION notify_credentials() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('uptrail_credentials', '');
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER api_keys_changed AFTER UPDATE OR DELETE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION notify_credentials()""",
    """CREATE TRIGGER browser_sessions_ended AFTER DELETE ON browser_sessions
    FOR EACH STATEMENT EXECUTE FUNCTION notify_credentials()""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
