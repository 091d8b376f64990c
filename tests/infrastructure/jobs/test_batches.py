from __future__ import annotations

from itertools import count, pairwise
from uuid import UUID

import pytest

from application.commands import BatchCommand, retry_upload
from application.handlers.execute import execute
from domain.batch.aggregate import Batch
from domain.batch.events import BatchCompleted, BatchProgressed, BatchReopened
from domain.batch.state import Outcome
from domain.retry import RetryPolicy
from domain.upload.events import AttemptStarted, UploadQueued
from domain.upload.state import UploadState
from tests.infrastructure.jobs.fake_processors import Fails, Gate, fail_bad_file, pass_file
from tests.infrastructure.jobs.harness import PipelineHarness, context, pipeline

ONE_STEP = pipeline("step")


@pytest.mark.parametrize(
    ("files", "outcome"),
    [
        ([], Outcome.SUCCEEDED),
        (["a.txt", "b.txt"], Outcome.SUCCEEDED),
        (["a.txt", "bad.txt"], Outcome.COMPLETED_WITH_FAILURES),
        (["bad.txt", "worse-bad.txt"], Outcome.FAILED),
    ],
)
async def test_a_batch_ends_once_with_the_outcome_of_its_uploads(
    harness: PipelineHarness, files: list[str], outcome: Outcome
) -> None:
    harness.run({"step": fail_bad_file})
    batch = await harness.batch(dict.fromkeys(files, b"x"))

    done = await harness.completed(batch)
    await harness.completed(await harness.batch({"later.txt": b"x"}))  # time for a second verdict

    assert done.outcome is outcome
    (completed,) = await harness.all_of(BatchCompleted, batch)
    assert sum(completed.counts.values()) == len(files)
    if files:
        assert (await harness.topics(batch))[-2:] == ["batch.progressed", "batch.completed"]


async def test_a_batch_with_a_file_on_its_way_never_completes(harness: PipelineHarness) -> None:
    harness.run({"step": pass_file})
    still_open = await harness.batch({"a.txt": b"x"}, seal=False)
    await harness.completed(await harness.batch({"a.txt": b"x"}))

    assert "batch.completed" not in await harness.topics(still_open)
    await harness.seal(still_open)
    assert (await harness.completed(still_open)).outcome is Outcome.SUCCEEDED


async def test_counts_never_exceed_the_uploads_of_a_batch_that_failed_and_went_on(
    harness: PipelineHarness,
) -> None:
    harness.orchestrate()
    worker = harness.work({"step": Fails(attempts=1)})
    batch = await harness.batch({f"{n}.txt": b"x" * n for n in range(60)})
    await harness.until(lambda: harness.all_of(BatchProgressed, batch))
    await harness.stop(worker)
    harness.work({"step": Fails(attempts=1)})

    await harness.completed(batch)

    counts = await harness.all_of(BatchProgressed, batch)
    assert all(sum(event.counts.values()) <= 60 for event in counts)
    assert all(0 <= event.percent <= 100 for event in counts)
    assert all(event.bytes_received <= event.bytes_total for event in counts)
    assert counts[-1].counts == {UploadState.COMPLETED: 60}
    assert {u.state for u in (await harness.uploads(batch)).values()} == {UploadState.COMPLETED}


async def test_counts_are_recorded_at_most_four_times_a_second(harness: PipelineHarness) -> None:
    harness.run({"step": pass_file})
    batch = await harness.batch(seal=False)
    number = count()

    async def counted_often() -> bool:
        await harness.receive(batch, f"{next(number)}.txt", b"x")
        return len(await harness.all_of(BatchProgressed, batch)) >= 4

    await harness.until(counted_often)
    await harness.seal(batch)
    await harness.completed(batch)

    *counts, _ = await harness.all_of(BatchProgressed, batch)  # the last comes with the end
    gaps = [later.at - sooner.at for sooner, later in pairwise(counts)]
    assert min(gap.total_seconds() for gap in gaps) >= 0.25


async def test_cancelling_a_batch_ends_every_upload_and_stops_what_runs(
    harness: PipelineHarness,
) -> None:
    gate = Gate()
    harness.run({"step": gate})
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(40)}, seal=False)
    await harness.until(lambda: len(gate.inside) == harness.settings.worker_concurrency)

    await harness.cancel(batch)
    done = await harness.completed(batch)
    await harness.until(lambda: not gate.inside)

    assert done.outcome is Outcome.CANCELLED
    uploads = (await harness.uploads(batch)).values()
    assert {upload.state for upload in uploads} == {UploadState.CANCELLED}
    assert len(gate.cancelled) >= harness.settings.worker_concurrency
    for upload in gate.cancelled:
        assert (await harness.topics(upload))[-2:] == [
            "upload.attempt_abandoned",
            "upload.cancelled",
        ]


async def test_no_reason_of_a_cancellation_stops_the_orchestrator(harness: PipelineHarness) -> None:
    harness.orchestrate()
    batch = await harness.batch({"a.txt": b"x"})

    await harness.cancel(batch, reason="a NUL \0 and a \N{SNOWMAN}")

    assert (await harness.completed(batch)).outcome is Outcome.CANCELLED


async def test_a_paused_batch_starts_nothing_and_goes_on_when_resumed(
    harness: PipelineHarness,
) -> None:
    harness.orchestrate()
    waiting = await harness.batch({f"{n}.txt": b"x" for n in range(10)})
    await harness.until(lambda: _queued(harness, waiting, 10))
    await execute(harness.log, BatchCommand(waiting, Batch.pause), context())
    more = await harness.batch({f"{n}.txt": b"x" for n in range(10)}, seal=False)
    await execute(harness.log, BatchCommand(more, Batch.pause), context())
    paused = "SELECT count(*) FROM orchestration.batches WHERE paused"
    await harness.until(lambda: _is(harness, paused, 2))
    late = await harness.receive(more, "late.txt", b"x")

    harness.work({"step": pass_file})
    await harness.completed(await harness.batch({"other.txt": b"x"}))

    assert len(await harness.all_of(AttemptStarted)) == 1  # of the other batch
    assert "upload.queued" not in await harness.topics(late)
    await execute(harness.log, BatchCommand(waiting, Batch.resume), context())
    assert (await harness.completed(waiting)).outcome is Outcome.SUCCEEDED


@pytest.mark.options(in_flight_per_batch=10)
async def test_one_big_batch_never_blocks_another_owner(harness: PipelineHarness) -> None:
    big = await harness.batch({f"{n}.txt": b"x" for n in range(100)}, owner="acme")
    small = await harness.batch({f"{n}.txt": b"x" for n in range(5)}, owner="globex")
    harness.orchestrate()
    await harness.until(lambda: _queued(harness, small, 5))
    await harness.completed(await harness.batch(owner="third"))
    assert len(await _released(harness, big)) == 10

    harness.work({"step": pass_file})
    await harness.completed(small)
    await harness.completed(big)

    ends = [r.stream for r in await harness.events() if isinstance(r.event, BatchCompleted)]
    assert ends.index(small) < ends.index(big)


@pytest.mark.options(in_flight_per_owner=15)
async def test_an_owner_with_many_batches_stays_within_one_window(harness: PipelineHarness) -> None:
    files = {f"{n}.txt": b"x" for n in range(10)}
    usual = [await harness.batch(files, owner="acme") for _ in range(3)]
    urgent = await harness.batch(files, owner="acme", priority=5)
    harness.orchestrate()
    await harness.until(lambda: _queued(harness, urgent, 10))
    await harness.completed(await harness.batch(owner="other"))

    released = [len(await _released(harness, batch)) for batch in usual]

    assert sorted(released) == [1, 2, 2]  # what the urgent one leaves, in turn


async def test_a_retry_reopens_a_batch_that_was_over(harness: PipelineHarness) -> None:
    harness.run({"step": Fails(attempts=1)})
    once = RetryPolicy(attempts=1)
    batch = await harness.batch({"a.txt": b"x"}, retry_policy=once)
    assert (await harness.completed(batch)).outcome is Outcome.FAILED

    (upload,) = (await harness.uploads(batch)).values()
    await execute(harness.log, retry_upload(upload.id), context())
    await harness.until(lambda: _completions(harness, batch, 2))

    verdicts = await harness.all_of(BatchCompleted, batch)
    assert [event.outcome for event in verdicts] == [Outcome.FAILED, Outcome.SUCCEEDED]
    assert len(await harness.all_of(BatchReopened, batch)) == 1


async def _released(harness: PipelineHarness, batch: UUID) -> list[UUID]:
    own = {upload.id for upload in (await harness.uploads(batch)).values()}
    events = await harness.events()
    return [r.stream for r in events if r.stream in own and isinstance(r.event, UploadQueued)]


async def _queued(harness: PipelineHarness, batch: UUID, count: int) -> bool:
    return len(await _released(harness, batch)) == count


async def _completions(harness: PipelineHarness, batch: UUID, count: int) -> bool:
    return len(await harness.all_of(BatchCompleted, batch)) == count


async def _is(harness: PipelineHarness, query: str, value: int) -> bool:
    return await harness.fetch(query) == [(value,)]
