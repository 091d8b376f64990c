"""Webhooks: their projected state, secrets, and deliveries.

A lane is a batch of a webhook: its deliveries are made one after the other. `due_at` is when its
turn comes, or, while somebody holds its lease, when that ends.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "CREATE SCHEMA webhooks",
    """CREATE TABLE webhooks.endpoints (
        id uuid PRIMARY KEY,
        owner text NOT NULL,
        enabled boolean NOT NULL,
        webhook jsonb NOT NULL)""",
    "CREATE INDEX endpoints_owner_id_idx ON webhooks.endpoints (owner, id)",
    """CREATE TABLE webhooks.secrets (
        id uuid PRIMARY KEY,
        webhook uuid NOT NULL,
        secret text NOT NULL,
        made_at timestamptz NOT NULL DEFAULT now())""",
    "CREATE INDEX secrets_webhook_idx ON webhooks.secrets (webhook)",
    """CREATE TABLE webhooks.health (
        webhook uuid PRIMARY KEY,
        failing_since timestamptz,
        last_error text NOT NULL DEFAULT '',
        missed bigint NOT NULL DEFAULT 0,
        missed_after bigint)""",
    # A row changes once or twice: room on the page keeps it where it is.
    """CREATE TABLE webhooks.deliveries (
        webhook uuid NOT NULL,
        position bigint NOT NULL,
        lane uuid NOT NULL,
        stream uuid NOT NULL,
        version bigint NOT NULL,
        type text NOT NULL,
        state text NOT NULL DEFAULT 'pending',
        attempts integer NOT NULL DEFAULT 0,
        failures integer NOT NULL DEFAULT 0,
        queued_at timestamptz NOT NULL,
        next_at timestamptz,
        ended_at timestamptz,
        last jsonb,
        PRIMARY KEY (webhook, position)) WITH (fillfactor = 80)""",
    """CREATE INDEX deliveries_pending_idx ON webhooks.deliveries (webhook, lane, position)
        WHERE state = 'pending'""",
    """CREATE INDEX deliveries_queued_at_idx ON webhooks.deliveries (queued_at)
        WHERE state = 'pending'""",
    """CREATE INDEX deliveries_failed_idx ON webhooks.deliveries (webhook, position)
        WHERE state = 'failed'""",
    """CREATE INDEX deliveries_ended_at_idx ON webhooks.deliveries (ended_at)
        WHERE state <> 'pending'""",
    """CREATE TABLE webhooks.lanes (
        webhook uuid NOT NULL,
        lane uuid NOT NULL,
        due_at timestamptz NOT NULL,
        lease uuid,
        PRIMARY KEY (webhook, lane))""",
    "CREATE INDEX lanes_webhook_due_at_idx ON webhooks.lanes (webhook, due_at)",
    "CREATE INDEX lanes_leased_idx ON webhooks.lanes (webhook) WHERE lease IS NOT NULL",
    # There is no webhook yet: events that are in the log already are delivered to none.
    """INSERT INTO notification_tracking
        SELECT 'webhooks', coalesce(max(notification_id), 0) FROM stored_events""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
