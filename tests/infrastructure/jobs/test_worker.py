from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from application.append import append_to_stream
from application.commands import UploadCommand
from application.handlers.execute import execute
from application.pipeline import Processor, StepContext, StepInput
from application.worker.attempt import AttemptWriter, PipelinePassed
from domain.batch.state import Outcome
from domain.errors import StaleAttempt
from domain.upload.aggregate import Upload
from domain.upload.events import (
    AttemptAbandoned,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    FileProgressed,
    UploadFailed,
)
from domain.upload.state import UploadState
from tests.infrastructure.jobs.fake_processors import Fails, Gate, Raises, pass_file
from tests.infrastructure.jobs.harness import PipelineHarness, now, open_harness, pipeline, settings
from tests.infrastructure.jobs.harness import context as by_alice

ONE_STEP = pipeline("step")
HERE = Path(__file__).parents[3]


async def test_a_retry_waits_for_its_moment_and_keeps_the_real_error(
    harness: PipelineHarness,
) -> None:
    harness.run({"step": Fails(attempts=2)})
    batch = await harness.batch({"a.txt": b"x"})

    done = await harness.completed(batch)

    assert done.outcome is Outcome.SUCCEEDED
    upload = await _only(harness, batch)
    failures = await harness.all_of(AttemptFailed, upload)
    starts = await harness.all_of(AttemptStarted, upload)
    assert [f.number for f in failures] == [1, 2]
    assert [s.number for s in starts] == [1, 2, 3]
    for failure, following in zip(failures, starts[1:], strict=True):
        assert (failure.step, failure.error_type) == ("step", "ConnectionResetError")
        assert failure.message == "the scanner hung up"
        assert not failure.permanent
        assert following.at >= failure.retry_at


async def test_the_last_error_is_never_overwritten_by_a_general_one(
    harness: PipelineHarness,
) -> None:
    harness.run({"step": Fails(attempts=99)})
    batch = await harness.batch({"a.txt": b"x"})

    done = await harness.completed(batch)

    assert done.outcome is Outcome.FAILED
    upload = await _only(harness, batch)
    assert len(await harness.all_of(AttemptFailed, upload)) == 3
    last = (await harness.events(upload))[-1].event
    assert getattr(last, "message", "") == "the scanner hung up"


@pytest.mark.options(pipelines=pipeline("step", timeout=0.1))
async def test_a_step_that_takes_too_long_fails_by_name_and_may_be_tried_again(
    harness: PipelineHarness,
) -> None:
    harness.run({"step": Gate()})
    batch = await harness.batch({"a.txt": b"x"})

    await harness.completed(batch)

    failures = await harness.all_of(AttemptFailed)
    assert [failure.error_type for failure in failures] == ["StepTimeout"] * 3
    assert failures[0].message == "step did not finish within 0.1 s"


async def _wordy(
    subject: StepInput, step_context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    return {"bytes": b"are no JSON", "set": object()}


@pytest.mark.parametrize(
    ("pipelines", "processors", "step", "error", "message"),
    [
        ({}, {}, "pipeline", "UnknownPipeline", "there is no pipeline 'default'"),
        (ONE_STEP, {"other": pass_file}, "step", "UnknownProcessor", "no processor 'step'"),
        (ONE_STEP, {"step": _wordy}, "step", "BadResult", "not JSON"),
    ],
)
async def test_a_mistake_in_the_settings_is_reported_and_not_retried_for_ever(
    database_url: str,
    tmp_path: Path,
    pipelines: dict[str, Any],
    processors: dict[str, Processor],
    step: str,
    error: str,
    message: str,
) -> None:
    async with open_harness(database_url, tmp_path, pipelines=pipelines) as harness:
        harness.run(processors)

        done = await harness.completed(await harness.batch({"a.txt": b"x"}))

        assert done.outcome is Outcome.FAILED
        (failure,) = await harness.all_of(AttemptFailed)
        assert (failure.step, failure.error_type, failure.permanent) == (step, error, True)
        assert message in failure.message


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        MemoryError(),
        RecursionError(),
        StaleAttempt("the log said nothing of the kind"),
        BaseExceptionGroup("several", [SystemExit(1), ValueError("x")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_any_error_of_a_processor_is_an_outcome(
    harness: PipelineHarness, error: BaseException
) -> None:
    """Also for those that run in the worker's own process."""

    harness.orchestrate()
    worker = harness.work({"step": Raises(error)})
    batch = await harness.batch({"bad.txt": b"x", "good.txt": b"x"})

    done = await harness.completed(batch)

    assert done.outcome is Outcome.COMPLETED_WITH_FAILURES
    failures = await harness.all_of(AttemptFailed)
    assert [failure.error_type for failure in failures] == [type(error).__name__] * 3
    assert await harness.all_of(AttemptAbandoned) == []
    assert not worker.done()


@pytest.mark.options(pipelines=pipeline("first", "second", limit=1))
async def test_a_processor_that_changes_what_it_is_given_changes_no_other_upload_and_no_result(
    harness: PipelineHarness,
) -> None:
    kept: dict[str, Any] = {}
    seen: list[dict[str, Any]] = []

    async def first(
        subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        kept["path"] = subject.path
        return kept  # the same object for every upload

    async def second(
        subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        seen.append(dict(options))
        options["path"] = subject.path
        subject.metadata["changed"] = "by a processor"
        subject.results["first"]["path"] = "changed by a later step"
        return {}

    harness.run({"first": first, "second": second})
    paths = [f"{number}.txt" for number in range(4)]
    batch = await harness.batch(dict.fromkeys(paths, b"x"))

    await harness.completed(batch)

    uploads = await harness.uploads(batch)
    for path in paths:
        (succeeded,) = await harness.all_of(AttemptSucceeded, uploads[path].id)
        assert succeeded.results["first"] == {"path": path}
    assert seen == [{"limit": 1}] * 4


async def test_cancelling_an_upload_stops_its_running_attempt(harness: PipelineHarness) -> None:
    gate = Gate()
    harness.run({"step": gate})
    batch = await harness.batch({"a.txt": b"x", "b.txt": b"x"})
    await harness.until(lambda: len(gate.inside) == 2)
    gone = gate.inside[0]

    await execute(harness.log, UploadCommand(gone, Upload.cancel), by_alice())
    await harness.until(lambda: gate.cancelled)
    gate.open()
    done = await harness.completed(batch)

    assert gate.cancelled == [gone]
    assert done.outcome is Outcome.COMPLETED_WITH_FAILURES
    assert (await harness.upload(gone)).state is UploadState.CANCELLED


async def test_a_worker_that_stops_gives_its_work_back_and_uses_up_no_attempt(
    harness: PipelineHarness,
) -> None:
    gate = Gate()
    harness.orchestrate()
    stopping = harness.work({"step": gate})
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(30)})
    await harness.until(lambda: len(gate.inside) == harness.settings.worker_concurrency)

    await harness.stop(stopping)
    assert not gate.inside
    harness.work({"step": pass_file})
    done = await harness.completed(batch)

    assert done.outcome is Outcome.SUCCEEDED
    abandoned = await harness.all_of(AttemptAbandoned)
    assert len(abandoned) == harness.settings.worker_concurrency
    assert {event.reason for event in abandoned} == {"worker stopping"}
    assert {u.failures for u in (await harness.uploads(batch)).values()} == {0}
    workers = {event.worker for event in await harness.all_of(AttemptStarted)}
    assert len(workers) == 2


@pytest.mark.options(worker_dead_after=1.5)
async def test_a_killed_worker_never_leaves_its_uploads_processing(
    database_url: str, tmp_path: Path, harness: PipelineHarness
) -> None:
    harness.orchestrate()
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(10)})
    doomed = await _worker_process(database_url, tmp_path)
    await harness.until(lambda: harness.all_of(AttemptStarted))

    os.kill(doomed.pid, signal.SIGKILL)
    await doomed.wait()
    harness.work({"step": pass_file})
    done = await harness.completed(batch)

    assert done.outcome is Outcome.SUCCEEDED
    abandoned = await harness.all_of(AttemptAbandoned)
    assert abandoned
    assert all(event.reason == f"worker {event.worker} is gone" for event in abandoned)
    for upload in (await harness.uploads(batch)).values():
        numbers = [event.number for event in await harness.all_of(AttemptStarted, upload.id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert upload.failures == 0


@pytest.mark.options(worker_dead_after=1.5, max_worker_losses=2)
async def test_a_file_that_costs_workers_fails_and_those_beside_it_complete(
    database_url: str, tmp_path: Path, harness: PipelineHarness
) -> None:
    harness.orchestrate()
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(3)})

    async def kill_a_worker(attempts: int) -> None:
        doomed = await _worker_process(database_url, tmp_path)

        async def begun() -> bool:
            return len(await harness.all_of(AttemptStarted)) == attempts

        await harness.until(begun)
        os.kill(doomed.pid, signal.SIGKILL)
        await doomed.wait()

    async def lost(attempts: int) -> bool:
        return len(await harness.all_of(AttemptAbandoned)) == attempts

    await kill_a_worker(3)  # all of them are under suspicion
    await harness.until(lambda: lost(3))
    await _count_losses_as_the_migration_does(harness, 3)
    await kill_a_worker(4)  # one runs alone: nothing else can be to blame
    await harness.until(lambda: lost(4))
    harness.work({"step": pass_file})
    done = await harness.completed(batch)

    assert done.outcome is Outcome.COMPLETED_WITH_FAILURES
    uploads = (await harness.uploads(batch)).values()
    states = sorted(upload.state for upload in uploads)
    assert states == [UploadState.COMPLETED, UploadState.COMPLETED, UploadState.FAILED]
    (failed,) = await harness.all_of(UploadFailed)
    assert failed.message.startswith("2 workers were lost while processing this file")


async def test_an_event_of_a_zombie_is_refused(harness: PipelineHarness) -> None:
    batch = await harness.batch({"a.txt": b"x"})
    harness.orchestrate()
    upload = await _only(harness, batch)
    await harness.until(lambda: _is_queued(harness, upload))
    zombie = AttemptWriter(harness.log, await harness.upload(upload), "zombie", now)
    await zombie.begin()
    given_up = zombie.upload.abandon_attempt(1, "worker zombie is gone", at=now(), by="test")
    await harness.log.append(append_to_stream(upload, zombie.upload.version, *given_up))
    heir = AttemptWriter(harness.log, await harness.upload(upload), "heir", now)
    await heir.begin()

    for word in (zombie.end(PipelinePassed({}, {}), 0.5), zombie.record_progress("step", 1, 2)):
        with pytest.raises(StaleAttempt):
            await word
    await heir.end(PipelinePassed({}, {}), 0.5)

    (succeeded,) = await harness.all_of(AttemptSucceeded, upload)
    assert succeeded.number == 2
    assert succeeded.by == "worker:heir"


@pytest.mark.options(pipelines=pipeline("step", "slow"), step_progress_interval=0.1)
async def test_a_fast_step_leaves_no_progress_in_the_log_and_a_slow_one_does(
    harness: PipelineHarness,
) -> None:

    async def slow(
        _: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        for step in range(1, 11):
            await step_context.progress(step, 20)
        await harness.until(lambda: harness.all_of(FileProgressed))
        for step in range(11, 21):
            await step_context.progress(step, 20)
        return {}

    harness.run({"step": pass_file, "slow": slow})
    batch = await harness.batch({"a.txt": b"x"})

    await harness.completed(batch)

    steps = await harness.all_of(FileProgressed)
    assert [(event.phase, event.done) for event in steps] == [("slow", 10), ("slow", 20)]
    assert steps[-1].percent == 100.0


async def test_artifacts_of_an_attempt_that_failed_leave_no_orphans(
    harness: PipelineHarness,
) -> None:
    async def draws(
        subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        await step_context.attach("picture.webp", b"pixels")
        if subject.attempt == 1:
            raise OSError("the brush broke")
        return {}

    harness.run({"step": draws})
    batch = await harness.batch({"a.txt": b"x"})

    await harness.completed(batch)

    (succeeded,) = await harness.all_of(AttemptSucceeded)
    blob = succeeded.artifacts["picture.webp"]
    assert b"".join([chunk async for chunk in harness.blobs.read(blob)]) == b"pixels"
    assert await harness.blobs.size(blob.replace("/2/", "/1/")) == 0


async def test_an_artifact_that_was_stored_without_an_answer_is_no_orphan(
    harness: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[str] = []
    put = harness.blobs.put

    async def put_without_answer(name: str, content: bytes) -> None:
        await put(name, content)
        if name.startswith("artifacts/"):
            stored.append(name)
            if len(stored) == 1:
                raise OSError("the answer is lost")

    async def draws(
        subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        await step_context.attach("picture.webp", b"pixels")
        return {}

    monkeypatch.setattr(harness.blobs, "put", put_without_answer)
    harness.run({"step": draws})

    await harness.completed(await harness.batch({"a.txt": b"x"}))

    assert [await harness.blobs.size(name) for name in stored] == [0, len(b"pixels")]


async def test_a_worker_does_its_uploads_within_its_bound(harness: PipelineHarness) -> None:
    gate = Gate()
    harness.run({"step": gate}, settings=settings(pipelines=ONE_STEP, worker_concurrency=2))
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(10)})
    await harness.until(lambda: len(gate.inside) == 2)
    started = await harness.all_of(AttemptStarted)
    gate.open()

    await harness.completed(batch)

    assert len(started) == 2


async def test_a_job_whose_end_cannot_be_marked_is_given_to_a_worker_again(
    database_url: str, tmp_path: Path
) -> None:
    """The disk of the database is full for a moment, just when a job is over."""
    full_once = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION full_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('tries') = 1 THEN RAISE 'no space' USING ERRCODE = '53100'; END IF;
        RETURN OLD;
    END $$;
    CREATE TRIGGER full_once BEFORE DELETE ON procrastinate_jobs
    FOR EACH ROW EXECUTE FUNCTION full_once()"""
    unheard: list[dict[str, Any]] = []

    async with open_harness(database_url, tmp_path, pipelines=ONE_STEP) as harness:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        async with harness.pool.connection() as connection:
            await connection.execute(full_once)
        harness.run({"step": pass_file})
        batch = await harness.batch({"a.txt": b"x"})
        assert (await harness.completed(batch)).outcome is Outcome.SUCCEEDED
        left = "SELECT count(*) FROM procrastinate_jobs"
        await harness.until(lambda: _has(harness, left, 0))
    gc.collect()  # a task whose error was not retrieved reports it when it is collected
    assert unheard == []


async def _count_losses_as_the_migration_does(harness: PipelineHarness, uploads: int) -> None:
    """Databases of earlier versions have the events, and no column."""
    migration = import_module("infrastructure.postgres.migrations.versions.0016_losses")
    total = "SELECT count(*) FROM orchestration.members WHERE losses = 1"
    await harness.until(lambda: _has(harness, total, uploads))
    async with harness.pool.connection() as connection, connection.transaction():
        await connection.execute("UPDATE orchestration.members SET losses = 0")
        counted = await connection.execute(migration._COUNT)
        assert counted.rowcount == uploads
    await harness.until(lambda: _has(harness, total, uploads))


async def _has(harness: PipelineHarness, query: str, count: int) -> bool:
    return await harness.fetch(query) == [(count,)]


async def _worker_process(database_url: str, folder: Path) -> asyncio.subprocess.Process:
    """A worker whose attempts never end, to be killed."""
    module = "tests.infrastructure.jobs.worker_process"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, database_url, str(folder), cwd=HERE
    )


async def _only(harness: PipelineHarness, batch: UUID) -> UUID:
    (upload,) = (await harness.uploads(batch)).values()
    return upload.id


async def _is_queued(harness: PipelineHarness, upload: UUID) -> bool:
    return (await harness.upload(upload)).state is UploadState.QUEUED
