"""The read model: its tables in their own schema, and the state of the projection.

These statements are how it began. Later forms are not migrated but rebuilt from the log
(`infrastructure.read_model.rebuild`): the version below says which code made the rows.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "CREATE SCHEMA read_model",
    """CREATE TABLE read_model.batches (
            id uuid NOT NULL,
            owner text NOT NULL,
            label text NOT NULL,
            state text NOT NULL,
            outcome text,
            paused boolean NOT NULL,
            pipeline text NOT NULL,
            priority bigint NOT NULL,
            metadata jsonb NOT NULL,
            uploads bigint NOT NULL,
            counts jsonb NOT NULL,
            bytes_received bigint NOT NULL,
            bytes_total bigint NOT NULL,
            percent double precision NOT NULL,
            started_at timestamptz NOT NULL,
            started_by text NOT NULL,
            sealed_at timestamptz,
            completed_at timestamptz,
            updated_at timestamptz NOT NULL,
            version bigint NOT NULL,
            position bigint NOT NULL,
            CONSTRAINT batches_pkey PRIMARY KEY (id)
        )""",
    """CREATE INDEX batches_owner_started_at_id_idx
        ON read_model.batches (owner, started_at, id)""",
    """CREATE INDEX batches_position_idx
        ON read_model.batches (position)""",
    """CREATE INDEX batches_started_at_id_idx
        ON read_model.batches (started_at, id)""",
    """CREATE INDEX batches_unfinished_idx
        ON read_model.batches (started_at, id) WHERE state <> 'completed'""",
    """CREATE TABLE read_model.uploads (
            id uuid NOT NULL,
            batch uuid NOT NULL,
            owner text NOT NULL,
            path text COLLATE "C" NOT NULL,
            size bigint,
            received bigint NOT NULL,
            media_type text,
            checksum text,
            metadata jsonb NOT NULL,
            pipeline text NOT NULL,
            state text NOT NULL,
            phase text,
            percent double precision,
            attempt integer NOT NULL,
            error text,
            error_step text,
            retry_at timestamptz,
            results jsonb NOT NULL,
            artifacts jsonb NOT NULL,
            blob text,
            registered_at timestamptz NOT NULL,
            received_at timestamptz,
            ended_at timestamptz,
            updated_at timestamptz NOT NULL,
            version bigint NOT NULL,
            position bigint NOT NULL,
            CONSTRAINT uploads_pkey PRIMARY KEY (id)
        )""",
    """CREATE INDEX uploads_batch_path_id_idx
        ON read_model.uploads (batch, path, id)""",
    """CREATE INDEX uploads_batch_position_idx
        ON read_model.uploads (batch, position)""",
    """CREATE INDEX uploads_batch_state_path_id_idx
        ON read_model.uploads (batch, state, path, id)""",
    """CREATE TABLE read_model.attempts (
            upload uuid NOT NULL,
            number integer NOT NULL,
            worker text NOT NULL,
            state text NOT NULL,
            step text,
            percent double precision,
            error_type text,
            message text,
            permanent boolean,
            retry_at timestamptz,
            started_at timestamptz NOT NULL,
            ended_at timestamptz,
            duration double precision,
            position bigint NOT NULL,
            CONSTRAINT attempts_pkey PRIMARY KEY (upload, number)
        )""",
    """CREATE INDEX attempts_position_idx
        ON read_model.attempts (position)""",
    """CREATE TABLE projections (
            name text NOT NULL,
            version integer NOT NULL,
            epoch text NOT NULL,
            built_at timestamptz NOT NULL,
            CONSTRAINT projections_pkey PRIMARY KEY (name)
        )""",
    "INSERT INTO projections VALUES ('read_model', 1, gen_random_uuid()::text, now())",
    "INSERT INTO notification_tracking VALUES ('read_model', 0)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
