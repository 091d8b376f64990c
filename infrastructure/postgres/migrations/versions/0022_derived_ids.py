"""A secret that keys the ids derived from names; empty for a database that has events already."""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "CREATE TABLE derived_ids (secret bytea NOT NULL CHECK (length(secret) IN (0, 32)))",
    "CREATE UNIQUE INDEX derived_ids_one_idx ON derived_ids ((true))",
    # gen_random_uuid() takes 122 bits each from the server's strong source of random numbers.
    """INSERT INTO derived_ids SELECT CASE
        WHEN EXISTS (SELECT FROM stored_events) THEN ''::bytea
        ELSE sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
            || uuid_send(gen_random_uuid())) END""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
