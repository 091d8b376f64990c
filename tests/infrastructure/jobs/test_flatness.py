"""What a round and a chunk read does not grow with the batch: rows are counted, not seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from application.envelope import Append, Write
from domain.upload.events import UploadQueued
from infrastructure.jobs.leadership import take_the_lead
from infrastructure.jobs.queue import Dispatch
from infrastructure.jobs.round import run_round
from infrastructure.postgres.pool import Connection, connect
from infrastructure.read_model.projecting import connect_writer, project
from infrastructure.read_model.targets import LIVE
from tests.infrastructure.jobs.crowd import crowd
from tests.infrastructure.jobs.plant import ALICE, Plant, now, play

CROWD = 2000  # uploads
WINDOW = 10
ROUNDS = 5
FEW = 200  # rows read
OFTEN = 16  # times that a statement is executed until its plan is kept

# The statistics of a session are those of all once it has sent them.
_READ = """
SELECT coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) FROM pg_stat_user_tables
WHERE schemaname = %s AND relname = %s"""


def test_a_round_reads_what_it_needs_however_large_the_batch(
    database_url: str, tmp_path: Path
) -> None:
    async def story(plant: Plant) -> None:
        await crowd(plant, "acme", CROWD)
        async with await connect(database_url, name="orchestrator") as connection:
            position = await take_the_lead(connection)
            while events := await plant.log.read(position, limit=1000):
                await one_round(plant, connection, position)
                position = events[-1].position
            before = await reads(plant, connection, "orchestration", "members")
            for _ in range(ROUNDS):
                await one_round(plant, connection, position)
            after = await reads(plant, connection, "orchestration", "members")

        assert await plant.fetch("SELECT count(*) FROM orchestration.members") == [(CROWD,)]
        assert (after - before) / ROUNDS < FEW

    async def one_round(plant: Plant, connection: Connection, position: int) -> None:
        events = await plant.log.read(position, limit=1000)
        await run_round(
            connection,
            Dispatch(),
            plant.settings,
            position=position,
            events=events,
            check=not events,
            at=now(),
        )

    play(
        database_url,
        tmp_path,
        story,
        in_flight_per_batch=WINDOW,
        in_flight_per_owner=WINDOW,
        batch_progress_interval=3600.0,
    )


def test_a_chunk_reads_the_rows_it_changes_however_many_there_are(
    database_url: str, tmp_path: Path
) -> None:
    async def story(plant: Plant) -> None:
        async with await connect_writer(database_url, name="projector") as connection:
            await crowd(plant, "acme", WINDOW)
            for _ in range(ROUNDS):
                await project(connection, plant.log, LIVE)
            some = await plant.fetch("SELECT id FROM read_model.uploads")
            for _ in range(OFTEN):
                await go_on(plant, some)
                await project(connection, plant.log, LIVE)
            await crowd(plant, "acme", CROWD)
            await project(connection, plant.log, LIVE)
            before = await reads(plant, connection, "read_model", "uploads")
            await go_on(plant, some)
            await project(connection, plant.log, LIVE)
            after = await reads(plant, connection, "read_model", "uploads")

        assert WINDOW <= after - before < FEW

    async def go_on(plant: Plant, some: list[tuple[Any, ...]]) -> None:
        queued = UploadQueued(at=now(), by=ALICE)
        await plant.log.append(Append(tuple(Write(id, None, (queued,)) for (id,) in some)))

    play(database_url, tmp_path, story)


async def reads(plant: Plant, connection: Connection, schema: str, table: str) -> int:
    """Rows of the table that have been read so far; this session has told of its own."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    await connection.execute("SELECT 1")
    ((rows,),) = await plant.fetch(_READ, schema, table)
    return int(rows)
