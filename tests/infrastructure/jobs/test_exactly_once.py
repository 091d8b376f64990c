from __future__ import annotations

from collections import Counter

import psycopg
import pytest

from application.commands import UploadCommand
from application.handlers.execute import execute
from domain.batch.events import BatchCompleted
from domain.batch.state import Outcome
from domain.event import topic_of
from domain.retry import RetryPolicy
from domain.upload.aggregate import Upload
from domain.upload.events import AttemptStarted, UploadCompleted, UploadQueued
from domain.upload.state import UploadState
from infrastructure.jobs.orchestrator import run_round
from infrastructure.jobs.rounds import SESSION_SETTINGS, PostgresRounds
from infrastructure.postgres.connection import connect
from infrastructure.postgres.locks import ORCHESTRATOR_LOCK
from infrastructure.postgres.tracked_positions import ORCHESTRATOR_POSITION
from interfaces.bootstrap.tasks import supervise
from tests.fault_injection import COUNT_KILLS, KILLS, end_sessions
from tests.infrastructure.jobs.fake_processors import Fails, Gate, pass_file
from tests.infrastructure.jobs.harness import PipelineHarness, context, now, pipeline

ONE_STEP = pipeline("step")


@pytest.mark.parametrize(
    ("table", "moment"),
    [
        ("orchestration.members", "IMMEDIATE"),
        ("notification_tracking", "IMMEDIATE"),
        ("stored_events", "IMMEDIATE"),
        ("procrastinate_jobs", "IMMEDIATE"),
        ("procrastinate_jobs", "DEFERRED"),  # while it commits
    ],
)
async def test_a_crash_in_the_middle_of_a_round_neither_loses_nor_repeats_anything(
    harness: PipelineHarness, table: str, moment: str
) -> None:
    await harness.fetch_none(end_sessions("uptrail-orchestrator", table, moment))
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(30)})

    harness.run({"step": pass_file})
    done = await harness.completed(batch)

    assert done.outcome is Outcome.SUCCEEDED
    assert await harness.fetch(COUNT_KILLS) >= [(KILLS,)]
    await every_step_happened_once(harness, 30)


async def test_cutting_every_connection_at_random_loses_nothing(harness: PipelineHarness) -> None:
    harness.run({"step": Gate(opened=True)})
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(200)})
    for share in (0.2, 0.5, 0.8):

        async def far_enough(share: float = share) -> bool:
            return len(await harness.all_of(UploadCompleted)) >= share * 200

        await harness.until(far_enough)
        await harness.cut_all_connections()

    done = await harness.completed(batch)

    assert done.outcome is Outcome.SUCCEEDED
    assert len(await harness.all_of(UploadCompleted)) == 200
    assert len(await harness.all_of(UploadQueued)) == 200
    assert len(await harness.all_of(BatchCompleted)) == 1
    await attempts_are_numbered(harness)


async def test_a_redelivered_job_never_runs_the_same_upload_twice_at_once(
    harness: PipelineHarness,
) -> None:
    gate = Gate()
    harness.orchestrate()
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(6)})
    for _ in range(3):
        harness.work({"step": gate})
    await harness.until(lambda: len(gate.inside) == 6)
    copied = """INSERT INTO procrastinate_jobs (queue_name, task_name, args)
            SELECT queue_name, task_name, args FROM procrastinate_jobs, generate_series(1, 4)"""
    await harness.fetch_none(copied)

    async def copies_are_gone() -> bool:
        todo = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'todo'"
        return await harness.fetch(todo) == [(0,)]

    await harness.until(copies_are_gone)
    gate.open()
    await harness.completed(batch)

    assert set(gate.most.values()) == {1}
    assert len(await harness.all_of(AttemptStarted)) == 6


async def test_a_job_never_carries_an_upload_whose_release_was_refused(
    database_url: str, harness: PipelineHarness
) -> None:
    batch = await harness.batch(seal=False)
    kept = await harness.receive(batch, "kept.txt", b"x")
    gone = await harness.receive(batch, "gone.txt", b"x")
    events = await harness.events()
    await execute(harness.log, UploadCommand(gone, Upload.cancel), context())

    # A round that has not seen the cancellation yet.
    async with await connect(database_url, name="orchestrator") as connection:
        await connection.execute("INSERT INTO notification_tracking VALUES ('orchestrator', 0)")
        await run_round(
            PostgresRounds(connection, harness.settings),
            harness.settings,
            position=0,
            events=events,
            check=False,
            at=now(),
        )

    assert (await harness.topics(kept))[-1] == "upload.queued"
    assert (await harness.topics(gone))[-1] == "upload.cancelled"
    carried = "SELECT args -> 'uploads' FROM procrastinate_jobs"
    assert await harness.fetch(carried) == [([str(kept)],)]


async def test_an_orchestrator_that_was_overtaken_changes_nothing(
    database_url: str, harness: PipelineHarness
) -> None:
    batch = await harness.batch({"a.txt": b"x"})
    await harness.fetch_none("INSERT INTO notification_tracking VALUES ('orchestrator', 0)")
    events = await harness.events()
    async with await connect(database_url, name="overtaken") as connection:
        async with harness.pool.connection() as other:
            await ORCHESTRATOR_POSITION.save(other, events[-1].position)
        with pytest.raises(Exception, match="not at 0"):
            await run_round(
                PostgresRounds(connection, harness.settings),
                harness.settings,
                position=0,
                events=events,
                check=True,
                at=now(),
            )

    assert await harness.events() == events
    assert await harness.fetch("SELECT count(*) FROM procrastinate_jobs") == [(0,)]
    assert "batch.completed" not in await harness.topics(batch)


async def test_a_second_orchestrator_stands_by_and_takes_over(harness: PipelineHarness) -> None:
    one, two = harness.orchestrator(), harness.orchestrator()
    first = harness.start(supervise("one", one.run, essential=False))
    await harness.until(lambda: one.is_leader)
    harness.start(supervise("two", two.run, essential=False))
    harness.work({"step": pass_file})
    await harness.completed(await harness.batch({"a.txt": b"x"}))
    assert not two.is_leader

    await harness.stop(first)
    await harness.until(lambda: two.is_leader)
    done = await harness.completed(await harness.batch({"b.txt": b"x"}))

    assert done.outcome is Outcome.SUCCEEDED
    assert len(await harness.all_of(BatchCompleted)) == 2


async def test_a_stopped_leader_loses_its_session_and_another_takes_over(
    database_url: str, harness: PipelineHarness
) -> None:
    settings = {**SESSION_SETTINGS, "idle_session_timeout": "2s"}

    async with await connect(database_url, name="orchestrator", settings=settings) as frozen:
        await ORCHESTRATOR_LOCK.acquire(frozen)

        successor = harness.orchestrator()
        harness.start(supervise("successor", successor.run, essential=False))
        await harness.until(lambda: successor.is_leader)

        with pytest.raises(psycopg.OperationalError):
            await frozen.execute("SELECT 1")


async def every_step_happened_once(harness: PipelineHarness, uploads: int) -> None:
    events = await harness.events()
    counted = Counter(topic_of(recorded.event) for recorded in events)
    assert counted["upload.queued"] == uploads
    assert counted["upload.attempt_started"] == uploads
    assert counted["upload.completed"] == uploads
    assert counted["batch.completed"] == 1
    await attempts_are_numbered(harness)


async def attempts_are_numbered(harness: PipelineHarness) -> None:
    """No number occurs twice in a stream, and no version is left out."""
    events = await harness.events()
    for stream in {recorded.stream for recorded in events}:
        own = [recorded for recorded in events if recorded.stream == stream]
        assert [recorded.version for recorded in own] == list(range(1, len(own) + 1))
        numbers = [r.event.number for r in own if isinstance(r.event, AttemptStarted)]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_a_retry_that_is_delivered_early_waits_until_it_is_due(
    harness: PipelineHarness,
) -> None:
    """A queue may deliver a job at any time, so the worker itself looks at the time."""
    policy = RetryPolicy(attempts=3, first_delay=3600.0, longest_delay=3600.0)
    jobs = "SELECT id, scheduled_at > now() FROM procrastinate_jobs WHERE status = 'todo'"
    harness.run({"step": Fails(1)})
    batch = await harness.batch({"a.txt": b"x"}, retry_policy=policy)
    await harness.until(lambda: harness.count(batch, UploadState.RETRY_SCHEDULED))
    ((early, _),) = await harness.until(lambda: harness.fetch(jobs))

    await harness.fetch_none("UPDATE procrastinate_jobs SET scheduled_at = now()")

    async def is_scheduled_again() -> bool:
        found = await harness.fetch(jobs)
        return len(found) == 1 and found[0][0] != early and found[0][1]

    await harness.until(is_scheduled_again)
    assert len(await harness.all_of(AttemptStarted)) == 1
