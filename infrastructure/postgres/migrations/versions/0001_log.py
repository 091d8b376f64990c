"""The log: events, snapshots and tracking in the format of `eventsourcing` 9.5, and answers.

Source of the format: the create statements of `eventsourcing.postgres`, version 9.5.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_VACUUM = """WITH (
    autovacuum_enabled = true,
    autovacuum_vacuum_threshold = 100000000,
    autovacuum_vacuum_scale_factor = 0.5,
    autovacuum_analyze_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.01)"""

_STATEMENTS = (
    f"""CREATE TABLE stored_events (
        originator_id uuid NOT NULL,
        originator_version bigint NOT NULL,
        topic text,
        state bytea,
        notification_id bigserial,
        PRIMARY KEY (originator_id, originator_version)) {_VACUUM}""",
    """CREATE UNIQUE INDEX stored_events_notification_id_idx
        ON stored_events (notification_id ASC)""",
    """CREATE TYPE stored_event_uuid AS (
        originator_id uuid, originator_version bigint, topic text, state bytea)""",
    f"""CREATE TABLE stored_snapshots (
        originator_id uuid NOT NULL,
        originator_version bigint NOT NULL,
        topic text,
        state bytea,
        PRIMARY KEY (originator_id, originator_version)) {_VACUUM}""",
    f"""CREATE TABLE notification_tracking (
        application_name text,
        notification_id bigint,
        PRIMARY KEY (application_name)) {_VACUUM}""",
    # The library marks a table of its single-row kind so, and migrates one that is not marked.
    "INSERT INTO notification_tracking VALUES ('__migration__', 1)",
    """CREATE TABLE command_answers (
        command_id uuid PRIMARY KEY,
        fingerprint text NOT NULL,
        body bytea NOT NULL,
        position bigint NOT NULL,
        answered_at timestamptz NOT NULL DEFAULT now())""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
