"""Control of batches under way: retries, thresholds, expiry, release; in bounded rounds."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from application.append import RecordedEvent
from application.commands import (
    CancelBatch,
    PrioritizeBatch,
    ReleaseUpload,
    ResumeBatch,
    RetryBatch,
)
from application.handlers.execute import execute
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
from domain.upload.events import AttemptStarted, RetryRequested, UploadExpired, UploadQueued
from domain.upload.state import UploadState
from infrastructure.jobs import selection
from tests.fault_injection import COUNT_KILLS, KILLS, end_sessions
from tests.infrastructure.jobs.crowd import crowd
from tests.infrastructure.jobs.hands import Fails, Gate, Refusing, holds_back, passes, refuses
from tests.infrastructure.jobs.plant import Plant, context, open_plant, pipeline

ONE_STEP = pipeline("step")
ONCE = RetryPolicy(attempts=1)


async def test_every_failed_upload_of_a_batch_is_retried_once_per_request(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MAX_ROUND_UPLOADS", 7)  # rounds smaller than the batch

    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        plant.work({"step": Fails(attempts=2)})
        batch = await plant.batch({f"{n}.txt": b"x" for n in range(30)}, retry_policy=ONCE)
        assert (await plant.completed(batch)).outcome is Outcome.FAILED

        await execute(plant.log, RetryBatch(batch=batch), context())
        await plant.until(lambda: verdicts(plant, batch, 2))
        assert len(await plant.all_of(RetryRequested)) == 30
        await execute(plant.log, RetryBatch(batch=batch), context())
        await plant.until(lambda: verdicts(plant, batch, 3))

        outcomes = [event.outcome for event in await plant.all_of(BatchCompleted, batch)]
        assert outcomes == [Outcome.FAILED, Outcome.FAILED, Outcome.SUCCEEDED]
        assert len(await plant.all_of(RetryRequested)) == 60
        assert {u.attempt for u in (await plant.uploads(batch)).values()} == {3}
        assert await plant.fetch("SELECT count(*) FROM orchestration.retries") == [(0,)]


async def test_a_crash_in_the_middle_of_a_retry_neither_forgets_nor_repeats_an_upload(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MAX_ROUND_UPLOADS", 7)

    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        plant.work({"step": Fails(attempts=1)})
        batch = await plant.batch({f"{n}.txt": b"x" for n in range(30)}, retry_policy=ONCE)
        await plant.completed(batch)
        killer = end_sessions("uptrail-orchestrator", "orchestration.retries", "IMMEDIATE")
        await plant.fetch_none(killer)

        await execute(plant.log, RetryBatch(batch=batch), context())
        await plant.until(lambda: verdicts(plant, batch, 2), deadline=60)

        assert len(await plant.all_of(RetryRequested)) == 30
        assert {u.attempt for u in (await plant.uploads(batch)).values()} == {2}
        assert await plant.fetch(COUNT_KILLS) >= [(KILLS,)]


async def test_a_retry_leaves_what_did_not_fail_as_it_is(database_url: str, tmp_path: Path) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        plant.work({"step": refuses})
        batch = await plant.batch({"good.txt": b"x", "bad.txt": b"x"})
        await plant.completed(batch)

        await execute(plant.log, RetryBatch(batch=batch), context())
        await plant.until(lambda: verdicts(plant, batch, 2))

        uploads = await plant.uploads(batch)
        assert {path: upload.attempt for path, upload in uploads.items()} == {
            "good.txt": 1,
            "bad.txt": 2,
        }


async def test_a_cancelled_batch_is_retried_no_further(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MAX_ROUND_UPLOADS", 1)

    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        leader = plant.orchestrate()
        plant.work({"step": refuses})
        bad = {f"bad{n}.txt": b"x" for n in range(20)}
        batch = await plant.batch(bad, retry_policy=ONCE, seal=False)
        await plant.until(lambda: ended(plant, batch, 20))
        await plant.stop(leader)
        await execute(plant.log, RetryBatch(batch=batch), context())
        await execute(plant.log, CancelBatch(batch=batch), context())

        plant.orchestrate()
        done = await plant.completed(batch)

        assert done.outcome is Outcome.CANCELLED
        assert await plant.all_of(RetryRequested) == []
        assert await plant.fetch("SELECT count(*) FROM orchestration.retries") == [(0,)]


async def test_too_many_failures_pause_a_batch_and_who_resumes_it_pardons_them(
    database_url: str, tmp_path: Path
) -> None:
    patient = pipeline("step", timeout=600.0)
    async with open_plant(
        database_url, tmp_path, pipelines=patient, in_flight_per_batch=4
    ) as plant:
        scanner = Refusing()
        plant.orchestrate()
        plant.work({"step": scanner})
        files = {f"{n}.txt": b"x" for n in range(40)}
        batch = await plant.batch(files, retry_policy=ONCE, failure_threshold=0.25)

        await scanner.allow(6)  # more than a quarter of the twenty that are judged at least
        paused = (await plant.until(lambda: plant.all_of(BatchPaused, batch)))[0]

        assert paused.by == "orchestrator"
        assert paused.reason == "6 uploads failed, more than 25% of those processed"
        await scanner.allow(len(files))  # what had begun runs to its end
        await plant.until(lambda: nothing_travels(plant))
        assert scanner.failed < len(files)
        await scanner.allow(known := scanner.failed)
        await plant.until(lambda: counted(plant, batch, known))
        await execute(plant.log, ResumeBatch(batch=batch), context())
        await scanner.allow(known + 5)
        await plant.until(lambda: counted(plant, batch, known + 5))
        assert await pauses(plant, batch, 1)
        await scanner.allow(known + 6)  # as many again
        await plant.until(lambda: pauses(plant, batch, 2))
        assert await plant.count(batch, UploadState.FAILED) == known + 6


async def test_an_open_batch_that_nobody_goes_on_with_expires(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP, batch_expiry=1.0) as plant:
        left = await plant.batch({"done.txt": b"x"}, seal=False)
        waiting = await plant.declared(left, "never.txt")
        plant.orchestrate()
        plant.work({"step": passes})

        done = await plant.completed(left)

        assert done.outcome is Outcome.EXPIRED
        assert len(await plant.all_of(BatchExpired, left)) == 1
        assert len(await plant.all_of(UploadExpired, waiting)) == 1
        states = {path: u.state for path, u in (await plant.uploads(left)).items()}
        assert states == {"done.txt": UploadState.COMPLETED, "never.txt": UploadState.EXPIRED}


async def test_a_batch_with_work_under_way_or_on_hold_does_not_expire(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP, batch_expiry=1.0) as plant:
        gate = Gate()
        busy = await plant.batch({"slow.txt": b"x"}, seal=False)
        held = await plant.batch({}, seal=False)
        await plant.pause(held)
        idle = await plant.batch({}, seal=False)
        plant.orchestrate()
        plant.work({"step": gate})

        await plant.until(lambda: gate.inside)
        await plant.completed(idle)

        assert await plant.all_of(BatchExpired, busy) == []
        assert await plant.all_of(BatchExpired, held) == []
        gate.open()
        assert (await plant.completed(busy)).outcome is Outcome.EXPIRED


async def test_a_release_from_quarantine_changes_the_verdict(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        plant.work({"step": holds_back})
        batch = await plant.batch({"eicar.txt": b"x", "good.txt": b"x"})
        assert (await plant.completed(batch)).outcome is Outcome.COMPLETED_WITH_FAILURES
        held = (await plant.uploads(batch))["eicar.txt"]

        command = ReleaseUpload(upload=held.id, reason="a test file")
        await execute(plant.log, command, context())
        await plant.until(lambda: verdicts(plant, batch, 2))

        (reopened,) = await plant.all_of(BatchReopened, batch)
        assert reopened.by == context().by  # with the release, not a moment later
        assert (await plant.all_of(BatchCompleted, batch))[-1].outcome is Outcome.SUCCEEDED
        assert (await plant.upload(held.id)).attempt == 1


async def test_a_batch_that_is_given_priority_goes_before_the_others_of_its_owner(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(
        database_url, tmp_path, pipelines=ONE_STEP, in_flight_per_owner=5
    ) as plant:
        files = {f"{n}.txt": b"x" for n in range(10)}
        usual, urgent = await plant.batch(files), await plant.batch(files)
        command = PrioritizeBatch(batch=urgent, priority=5)
        await execute(plant.log, command, context())

        plant.orchestrate()
        plant.work({"step": passes})
        await plant.completed(usual)
        await plant.completed(urgent)

        queued = [r.stream for r in await plant.events() if isinstance(r.event, UploadQueued)]
        first = {upload.id for upload in (await plant.uploads(urgent)).values()}
        assert set(queued[:10]) == first


async def test_a_large_batch_that_is_cancelled_does_not_hold_up_the_end_of_a_small_one(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        big = await crowd(plant, "acme", 3000)
        small = await crowd(plant, "globex", 10)
        await plant.cancel(big)
        await plant.cancel(small)

        plant.orchestrate()
        await plant.completed(big)
        await plant.completed(small)

        ends = [r.stream for r in await plant.events() if isinstance(r.event, BatchCompleted)]
        assert ends == [small, big]


async def test_a_batch_of_thousands_delays_ten_files_of_another_owner_by_no_more_than_its_window(
    database_url: str, tmp_path: Path
) -> None:
    window = 50

    windows = {"in_flight_per_batch": window, "in_flight_per_owner": window}
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP, **windows) as plant:
        big = await crowd(plant, "acme", 5000)
        plant.orchestrate()
        plant.work({"step": passes})
        await plant.until(lambda: begun(plant, 2 * window))
        small = await crowd(plant, "globex", 10)  # there all at once

        assert (await plant.completed(small)).outcome is Outcome.SUCCEEDED

        events = await plant.events()
        mine = {upload.id for upload in (await plant.uploads(small)).values()}
        theirs = {r.stream for r in events} - mine
        released = min(r.position for r in events if of(r, UploadQueued, mine))
        last = max(r.position for r in events if of(r, AttemptStarted, mine))
        between = [r for r in events if released < r.position < last]
        # What was released before, and one more window that a round may release meanwhile.
        assert len([r for r in between if of(r, AttemptStarted, theirs)]) <= 2 * window
        plant.log.forget(big)
        assert (await plant.log.batch(big)).outcome is None


def of(recorded: RecordedEvent, kind: type[Event], uploads: set[UUID]) -> bool:
    return isinstance(recorded.event, kind) and recorded.stream in uploads


async def pauses(plant: Plant, batch: UUID, count: int) -> bool:
    return len(await plant.all_of(BatchPaused, batch)) == count


async def verdicts(plant: Plant, batch: UUID, count: int) -> bool:
    return len(await plant.all_of(BatchCompleted, batch)) == count


async def ended(plant: Plant, batch: UUID, count: int) -> bool:
    uploads = (await plant.uploads(batch)).values()
    return len([upload for upload in uploads if upload.state.ended]) == count


async def begun(plant: Plant, count: int) -> bool:
    """Whether so many attempts have been started, whoever's."""
    counted = "SELECT count(*) FROM stored_events WHERE topic = 'upload.attempt_started'"
    return bool((await plant.fetch(counted))[0][0] >= count)


async def nothing_travels(plant: Plant) -> bool:
    """Whether every job is over; those of a paused batch end without beginning anything."""
    left = "SELECT count(*) = 0 FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    return await plant.fetch(left) == [(True,)]


async def counted(plant: Plant, batch: UUID, failed: int) -> bool:
    """Whether the last count on record has so many failures."""
    progress = await plant.all_of(BatchProgressed, batch)
    return bool(progress) and progress[-1].counts.get(UploadState.FAILED) == failed
