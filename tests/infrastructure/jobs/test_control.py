"""Control of batches under way: retries, thresholds, expiry, release; in bounded rounds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from application.append import RecordedEvent
from application.commands import BatchCommand, UploadCommand, release_upload
from application.handlers.execute import execute
from domain.batch.aggregate import Batch
from domain.batch.events import (
    BatchCompleted,
    BatchExpired,
    BatchPaused,
    BatchProgressed,
    BatchReopened,
)
from domain.batch.state import Outcome
from domain.event import Event
from domain.retry import RetryPolicy
from domain.upload.aggregate import Upload
from domain.upload.events import AttemptStarted, RetryRequested, UploadExpired, UploadQueued
from domain.upload.state import UploadState
from infrastructure.jobs import selection
from tests.fault_injection import COUNT_KILLS, KILLS, end_sessions
from tests.infrastructure.jobs.bulk_batch import start_bulk_batch
from tests.infrastructure.jobs.fake_processors import (
    Fails,
    FailsAsAllowed,
    Gate,
    fail_bad_file,
    pass_file,
    quarantine_eicar,
)
from tests.infrastructure.jobs.harness import PipelineHarness, context, open_harness, pipeline

ONE_STEP = pipeline("step")
ONCE = RetryPolicy(attempts=1)


async def test_every_failed_upload_of_a_batch_is_retried_once_per_request(
    harness: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MAX_ROUND_UPLOADS", 7)  # rounds smaller than the batch

    harness.run({"step": Fails(attempts=2)})
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(30)}, retry_policy=ONCE)
    assert (await harness.completed(batch)).outcome is Outcome.FAILED

    await execute(harness.log, BatchCommand(batch, Batch.request_retry), context())
    await harness.until(lambda: verdicts(harness, batch, 2))
    assert len(await harness.all_of(RetryRequested)) == 30
    await execute(harness.log, BatchCommand(batch, Batch.request_retry), context())
    await harness.until(lambda: verdicts(harness, batch, 3))

    outcomes = [event.outcome for event in await harness.all_of(BatchCompleted, batch)]
    assert outcomes == [Outcome.FAILED, Outcome.FAILED, Outcome.SUCCEEDED]
    assert len(await harness.all_of(RetryRequested)) == 60
    assert {u.attempt for u in (await harness.uploads(batch)).values()} == {3}
    assert await harness.fetch("SELECT count(*) FROM orchestration.retries") == [(0,)]


@pytest.mark.options(batch_progress_interval=0.001)
async def test_a_batch_that_is_retried_sealed_and_ended_in_one_round_completes(
    harness: PipelineHarness,
) -> None:
    batch = await harness.batch({}, seal=False)
    upload = await harness.declared(batch, "never.txt")
    await execute(harness.log, BatchCommand(batch, Batch.request_retry), context())
    await execute(harness.log, UploadCommand(upload, Upload.cancel), context())
    await harness.seal(batch)

    harness.orchestrate()  # its first round reads all of it

    assert (await harness.completed(batch)).outcome is not None


async def test_a_crash_in_the_middle_of_a_retry_neither_forgets_nor_repeats_an_upload(
    harness: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MAX_ROUND_UPLOADS", 7)

    harness.run({"step": Fails(attempts=1)})
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(30)}, retry_policy=ONCE)
    await harness.completed(batch)
    killer = end_sessions("uptrail-orchestrator", "orchestration.retries", "IMMEDIATE")
    await harness.fetch_none(killer)

    await execute(harness.log, BatchCommand(batch, Batch.request_retry), context())
    await harness.until(lambda: verdicts(harness, batch, 2), deadline=60)

    assert len(await harness.all_of(RetryRequested)) == 30
    assert {u.attempt for u in (await harness.uploads(batch)).values()} == {2}
    assert await harness.fetch(COUNT_KILLS) >= [(KILLS,)]


async def test_a_retry_leaves_what_did_not_fail_as_it_is(harness: PipelineHarness) -> None:
    harness.run({"step": fail_bad_file})
    batch = await harness.batch({"good.txt": b"x", "bad.txt": b"x"})
    await harness.completed(batch)

    await execute(harness.log, BatchCommand(batch, Batch.request_retry), context())
    await harness.until(lambda: verdicts(harness, batch, 2))

    uploads = await harness.uploads(batch)
    assert {path: upload.attempt for path, upload in uploads.items()} == {
        "good.txt": 1,
        "bad.txt": 2,
    }


async def test_a_cancelled_batch_is_retried_no_further(
    harness: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MAX_ROUND_UPLOADS", 1)

    leader = harness.orchestrate()
    harness.work({"step": fail_bad_file})
    bad = {f"bad{n}.txt": b"x" for n in range(20)}
    batch = await harness.batch(bad, retry_policy=ONCE, seal=False)
    await harness.until(lambda: ended(harness, batch, 20))
    await harness.stop(leader)
    await execute(harness.log, BatchCommand(batch, Batch.request_retry), context())
    await execute(harness.log, BatchCommand(batch, Batch.cancel), context())

    harness.orchestrate()
    done = await harness.completed(batch)

    assert done.outcome is Outcome.CANCELLED
    assert await harness.all_of(RetryRequested) == []
    assert await harness.fetch("SELECT count(*) FROM orchestration.retries") == [(0,)]


@pytest.mark.options(pipelines=pipeline("step", timeout=600.0), in_flight_per_batch=4)
async def test_too_many_failures_pause_a_batch_and_a_resume_acknowledges_them(
    harness: PipelineHarness,
) -> None:
    scanner = FailsAsAllowed()
    harness.run({"step": scanner})
    files = {f"{n}.txt": b"x" for n in range(40)}
    batch = await harness.batch(files, retry_policy=ONCE, failure_threshold=0.25)

    await scanner.allow(6)  # more than a quarter of the twenty that are judged at least
    paused = (await harness.until(lambda: harness.all_of(BatchPaused, batch)))[0]

    assert paused.by == "orchestrator"
    assert paused.reason == "6 uploads failed, more than 25% of those processed"
    await scanner.allow(len(files))  # what had begun runs to its end
    await harness.until(lambda: nothing_travels(harness))
    assert scanner.failed < len(files)
    await scanner.allow(known := scanner.failed)
    await harness.until(lambda: counted(harness, batch, known))
    await execute(harness.log, BatchCommand(batch, Batch.resume), context())
    await scanner.allow(known + 5)
    await harness.until(lambda: counted(harness, batch, known + 5))
    assert await pauses(harness, batch, 1)
    await scanner.allow(known + 6)  # as many again
    await harness.until(lambda: pauses(harness, batch, 2))
    assert await harness.count(batch, UploadState.FAILED) == known + 6


@pytest.mark.options(batch_expiry=1.0)
async def test_an_idle_open_batch_expires(harness: PipelineHarness) -> None:
    left = await harness.batch({"done.txt": b"x"}, seal=False)
    waiting = await harness.declared(left, "never.txt")
    harness.run({"step": pass_file})

    done = await harness.completed(left)

    assert done.outcome is Outcome.EXPIRED
    assert len(await harness.all_of(BatchExpired, left)) == 1
    assert len(await harness.all_of(UploadExpired, waiting)) == 1
    states = {path: u.state for path, u in (await harness.uploads(left)).items()}
    assert states == {"done.txt": UploadState.COMPLETED, "never.txt": UploadState.EXPIRED}


@pytest.mark.options(batch_expiry=1.0)
async def test_a_batch_with_work_under_way_or_on_hold_does_not_expire(
    harness: PipelineHarness,
) -> None:
    gate = Gate()
    busy = await harness.batch({"slow.txt": b"x"}, seal=False)
    held = await harness.batch({}, seal=False)
    await harness.pause(held)
    idle = await harness.batch({}, seal=False)
    harness.run({"step": gate})

    await harness.until(lambda: gate.inside)
    await harness.completed(idle)

    assert await harness.all_of(BatchExpired, busy) == []
    assert await harness.all_of(BatchExpired, held) == []
    gate.open()
    assert (await harness.completed(busy)).outcome is Outcome.EXPIRED


async def test_a_release_from_quarantine_changes_the_outcome_of_its_batch(
    harness: PipelineHarness,
) -> None:
    harness.run({"step": quarantine_eicar})
    batch = await harness.batch({"eicar.txt": b"x", "good.txt": b"x"})
    assert (await harness.completed(batch)).outcome is Outcome.COMPLETED_WITH_FAILURES
    held = (await harness.uploads(batch))["eicar.txt"]

    command = release_upload(held.id, "a test file")
    await execute(harness.log, command, context())
    await harness.until(lambda: verdicts(harness, batch, 2))

    (reopened,) = await harness.all_of(BatchReopened, batch)
    assert reopened.by == context().by  # with the release, not a moment later
    assert (await harness.all_of(BatchCompleted, batch))[-1].outcome is Outcome.SUCCEEDED
    assert (await harness.upload(held.id)).attempt == 1


@pytest.mark.options(in_flight_per_owner=5)
async def test_a_batch_that_is_given_priority_goes_before_the_others_of_its_owner(
    harness: PipelineHarness,
) -> None:
    files = {f"{n}.txt": b"x" for n in range(10)}
    usual, urgent = await harness.batch(files), await harness.batch(files)
    command = BatchCommand(urgent, partial(Batch.prioritize, priority=5))
    await execute(harness.log, command, context())

    harness.run({"step": pass_file})
    await harness.completed(usual)
    await harness.completed(urgent)

    queued = [r.stream for r in await harness.events() if isinstance(r.event, UploadQueued)]
    first = {upload.id for upload in (await harness.uploads(urgent)).values()}
    assert set(queued[:10]) == first


async def test_a_large_batch_that_is_cancelled_does_not_hold_up_the_end_of_a_small_one(
    harness: PipelineHarness,
) -> None:
    big = await start_bulk_batch(harness, "acme", 3000)
    small = await start_bulk_batch(harness, "globex", 10)
    await harness.cancel(big)
    await harness.cancel(small)

    harness.orchestrate()
    await harness.completed(big)
    await harness.completed(small)

    ends = [r.stream for r in await harness.events() if isinstance(r.event, BatchCompleted)]
    assert ends == [small, big]


async def test_a_batch_of_thousands_delays_ten_files_of_another_owner_by_no_more_than_its_window(
    database_url: str, tmp_path: Path
) -> None:
    window = 50

    windows = {"in_flight_per_batch": window, "in_flight_per_owner": window}
    async with open_harness(database_url, tmp_path, pipelines=ONE_STEP, **windows) as harness:
        big = await start_bulk_batch(harness, "acme", 5000)
        harness.run({"step": pass_file})
        await harness.until(lambda: begun(harness, 2 * window))
        small = await start_bulk_batch(harness, "globex", 10)  # there all at once

        assert (await harness.completed(small)).outcome is Outcome.SUCCEEDED

        events = await harness.events()
        mine = {upload.id for upload in (await harness.uploads(small)).values()}
        theirs = {r.stream for r in events} - mine
        released = min(r.position for r in events if of(r, UploadQueued, mine))
        last = max(r.position for r in events if of(r, AttemptStarted, mine))
        between = [r for r in events if released < r.position < last]
        # Uploads released before, and one more window that a round may release meanwhile.
        assert len([r for r in between if of(r, AttemptStarted, theirs)]) <= 2 * window
        harness.log.forget(big)
        assert (await harness.log.batch(big)).outcome is None


def of(recorded: RecordedEvent, kind: type[Event], uploads: set[UUID]) -> bool:
    return isinstance(recorded.event, kind) and recorded.stream in uploads


async def pauses(harness: PipelineHarness, batch: UUID, count: int) -> bool:
    return len(await harness.all_of(BatchPaused, batch)) == count


async def verdicts(harness: PipelineHarness, batch: UUID, count: int) -> bool:
    return len(await harness.all_of(BatchCompleted, batch)) == count


async def ended(harness: PipelineHarness, batch: UUID, count: int) -> bool:
    uploads = (await harness.uploads(batch)).values()
    return len([upload for upload in uploads if upload.state.ended]) == count


async def begun(harness: PipelineHarness, count: int) -> bool:
    """Return whether so many attempts have been started in all."""
    counted = "SELECT count(*) FROM stored_events WHERE topic = 'upload.attempt_started'"
    return bool((await harness.fetch(counted))[0][0] >= count)


async def nothing_travels(harness: PipelineHarness) -> bool:
    """Return whether every job has ended; jobs of a paused batch end without an attempt."""
    left = "SELECT count(*) = 0 FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    return await harness.fetch(left) == [(True,)]


async def counted(harness: PipelineHarness, batch: UUID, failed: int) -> bool:
    """Return whether the last recorded count has this number of failures."""
    progress = await harness.all_of(BatchProgressed, batch)
    return bool(progress) and progress[-1].counts.get(UploadState.FAILED) == failed
