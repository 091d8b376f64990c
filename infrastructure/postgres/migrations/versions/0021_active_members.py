"""Updates of `orchestration.members` become heap-only (HOT): no index depends on a state any more.

An update is heap-only if no column of any index changes, those of index predicates included. Four
partial indexes had the state in their predicate, so that every change of state wrote all indexes.
What they found is in `orchestration.active_members` now: one narrow row for each upload with which
something may still be done, by the kind of its state. Triggers keep it, so that no writer can
forget it. An upload that is processed at once costs one insert, one update and one delete there.

Half of each page of `members` is left free, because a round updates many neighbours at once.
"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """CREATE FUNCTION orchestration.kind_of(state text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE
        WHEN state IN ('registered', 'transferring') THEN 'incoming'
        WHEN state = 'received' THEN 'received'
        WHEN state IN ('queued', 'processing') THEN 'flight'
        WHEN state = 'retry_scheduled' THEN 'retry'
        WHEN state = 'failed' THEN 'failed' END""",
    """CREATE TABLE orchestration.active_members (
        upload uuid PRIMARY KEY,
        batch uuid NOT NULL,
        owner text NOT NULL,
        kind text NOT NULL)""",
    """INSERT INTO orchestration.active_members
        SELECT upload, batch, owner, orchestration.kind_of(state)
        FROM orchestration.members WHERE orchestration.kind_of(state) IS NOT NULL""",
    """CREATE INDEX active_members_by_batch
        ON orchestration.active_members (batch, kind, upload)""",
    """CREATE INDEX active_members_in_flight ON orchestration.active_members (owner, batch)
        WHERE kind = 'flight'""",
    """CREATE INDEX active_members_at_workers ON orchestration.active_members (upload)
        WHERE kind IN ('flight', 'retry')""",
    """CREATE INDEX active_members_incoming ON orchestration.active_members (upload)
        WHERE kind = 'incoming'""",
    """CREATE FUNCTION orchestration.note_inserted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO orchestration.active_members
            SELECT upload, batch, owner, orchestration.kind_of(state)
            FROM added WHERE orchestration.kind_of(state) IS NOT NULL;
        RETURN NULL;
    END $$""",
    # Nothing is joined with a transition table: a plan that was made for a few rows is kept, and
    # takes time in proportion to the square of many.
    """CREATE FUNCTION orchestration.note_updated() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        DELETE FROM orchestration.active_members WHERE upload = ANY (ARRAY(
            SELECT upload FROM after WHERE orchestration.kind_of(state) IS NULL));
        INSERT INTO orchestration.active_members AS m
            SELECT upload, batch, owner, orchestration.kind_of(state)
            FROM after WHERE orchestration.kind_of(state) IS NOT NULL
            ON CONFLICT (upload) DO UPDATE SET kind = EXCLUDED.kind WHERE m.kind <> EXCLUDED.kind;
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION orchestration.note_deleted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        DELETE FROM orchestration.active_members WHERE upload = ANY (ARRAY(
            SELECT upload FROM gone));
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER members_inserted AFTER INSERT ON orchestration.members
        REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION orchestration.note_inserted()""",
    """CREATE TRIGGER members_updated AFTER UPDATE ON orchestration.members
        REFERENCING NEW TABLE AS after
        FOR EACH STATEMENT EXECUTE FUNCTION orchestration.note_updated()""",
    """CREATE TRIGGER members_deleted AFTER DELETE ON orchestration.members
        REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION orchestration.note_deleted()""",
    "DROP INDEX orchestration.members_unfinished",
    "DROP INDEX orchestration.members_received",
    "DROP INDEX orchestration.members_in_flight",
    "DROP INDEX orchestration.members_failed",
    "ALTER TABLE orchestration.members SET (fillfactor = 45)",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
