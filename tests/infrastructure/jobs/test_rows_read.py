"""The rows read by a round or a chunk do not grow with the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from application.append import Append, StreamAppend
from domain.upload.events import UploadFailed, UploadQueued
from infrastructure.jobs.orchestrator import run_round
from infrastructure.jobs.rounds import SESSION_SETTINGS, PostgresRounds
from infrastructure.jobs.tables import load_position
from infrastructure.postgres.connection import Connection, connect
from infrastructure.read_model.projector import connect_writer, project
from infrastructure.read_model.tables import LIVE
from tests.infrastructure.jobs.bulk_batch import start_bulk_batch
from tests.infrastructure.jobs.fake_processors import fail_bad_file, pass_file
from tests.infrastructure.jobs.harness import ALICE, PipelineHarness, now, open_harness

CROWD = 2000  # uploads
WINDOW = 10
ROUNDS = 5
FEW = 200  # rows read
FILES = 300
HOT = 0.5  # the share of updates that write no index; all of them where nothing else runs
TABLES = ("members", "active_members")
OFTEN = 16  # times that a statement is executed until its plan is kept

# The statistics of a session are those of all once it has sent them.
_READ = """
SELECT coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) FROM pg_stat_user_tables
WHERE schemaname = %s AND relname = %s"""


async def test_a_round_reads_what_it_needs_however_large_the_batch(
    database_url: str, tmp_path: Path
) -> None:
    async def one_round(harness: PipelineHarness, connection: Connection, position: int) -> None:
        events = await harness.log.read(position, limit=1000)
        await run_round(
            PostgresRounds(connection, harness.settings),
            harness.settings,
            position=position,
            events=events,
            check=not events,
            at=now(),
        )

    async with open_harness(
        database_url,
        tmp_path,
        in_flight_per_batch=WINDOW,
        in_flight_per_owner=WINDOW,
        batch_progress_interval=3600.0,
    ) as harness:
        await start_bulk_batch(harness, "acme", CROWD)
        async with await connect(
            database_url, name="orchestrator", settings=SESSION_SETTINGS
        ) as connection:
            position = await load_position(connection)
            while events := await harness.log.read(position, limit=1000):
                await one_round(harness, connection, position)
                position = events[-1].position
            before = [await reads(harness, connection, "orchestration", table) for table in TABLES]
            for _ in range(ROUNDS):
                await one_round(harness, connection, position)
            after = [await reads(harness, connection, "orchestration", table) for table in TABLES]

        assert await harness.fetch("SELECT count(*) FROM orchestration.members") == [(CROWD,)]
        for earlier, later in zip(before, after, strict=True):
            assert (later - earlier) / ROUNDS < FEW


async def test_updates_of_members_write_no_index(harness: PipelineHarness) -> None:
    """Heap-only updates (HOT): no index depends on what changes, and pages have room."""
    updates = """SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
        WHERE schemaname = 'orchestration' AND relname = 'members'"""

    harness.run({"step": pass_file})
    batch = await harness.batch({f"{n:03}.txt": b"x" for n in range(FILES)})
    await harness.completed(batch)

    async def counted() -> tuple[int, int] | None:
        ((all_of_them, hot),) = await harness.fetch(updates)
        return (all_of_them, hot) if all_of_them >= 2 * FILES else None

    all_of_them, hot = await harness.until(counted)
    assert hot / all_of_them > HOT


async def test_the_rows_of_active_members_follow_from_the_states_of_uploads(
    harness: PipelineHarness,
) -> None:
    differing = """
        SELECT upload, orchestration.kind_of(m.state), a.kind FROM orchestration.members m
        FULL JOIN orchestration.active_members a USING (upload)
        WHERE orchestration.kind_of(m.state) IS DISTINCT FROM a.kind"""

    harness.run({"step": fail_bad_file})
    open_batch = await harness.batch({"good.txt": b"x", "bad.txt": b"x"}, seal=False)
    await harness.declared(open_batch, "never.txt")
    sealed = await harness.batch({f"{n}.txt": b"x" for n in range(20)})
    await harness.completed(sealed)
    await harness.until(lambda: harness.all_of(UploadFailed))

    kinds = "SELECT kind, count(*) FROM orchestration.active_members GROUP BY kind ORDER BY 1"
    await harness.until(lambda: _is(harness, kinds, [("failed", 1), ("incoming", 1)]))
    assert await harness.fetch(differing) == []
    await harness.cancel(open_batch)
    await harness.completed(open_batch)
    await harness.until(lambda: _is(harness, kinds, [("failed", 1)]))
    assert await harness.fetch(differing) == []


async def _is(harness: PipelineHarness, query: str, rows: list[tuple[Any, ...]]) -> bool:
    return await harness.fetch(query) == rows


async def test_a_chunk_reads_the_rows_it_changes_however_many_there_are(
    database_url: str, tmp_path: Path
) -> None:
    async def go_on(harness: PipelineHarness, some: list[tuple[Any, ...]]) -> None:
        queued = UploadQueued(at=now(), by=ALICE)
        await harness.log.append(Append(tuple(StreamAppend(id, None, (queued,)) for (id,) in some)))

    async with open_harness(database_url, tmp_path) as harness:
        async with await connect_writer(database_url, name="projector") as connection:
            await start_bulk_batch(harness, "acme", WINDOW)
            for _ in range(ROUNDS):
                await project(connection, harness.log, LIVE)
            some = await harness.fetch("SELECT id FROM read_model.uploads")
            for _ in range(OFTEN):
                await go_on(harness, some)
                await project(connection, harness.log, LIVE)
            await start_bulk_batch(harness, "acme", CROWD)
            await project(connection, harness.log, LIVE)
            before = await reads(harness, connection, "read_model", "uploads")
            await go_on(harness, some)
            await project(connection, harness.log, LIVE)
            after = await reads(harness, connection, "read_model", "uploads")

        assert WINDOW <= after - before < FEW


async def reads(harness: PipelineHarness, connection: Connection, schema: str, table: str) -> int:
    """Count the rows of the table read so far, those of this session included."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    await connection.execute("SELECT 1")
    ((rows,),) = await harness.fetch(_READ, schema, table)
    return int(rows)
