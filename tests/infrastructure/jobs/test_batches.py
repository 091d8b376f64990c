from __future__ import annotations

from itertools import count, pairwise
from pathlib import Path
from uuid import UUID

import pytest

from application.commands import PauseBatch, ResumeBatch, RetryUpload
from application.handlers.execute import execute
from domain.batch.events import BatchCompleted, BatchProgressed, BatchReopened
from domain.batch.state import Outcome
from domain.retry import RetryPolicy
from domain.upload.events import AttemptStarted, UploadQueued
from domain.upload.state import UploadState
from tests.infrastructure.jobs.hands import Fails, Gate, passes, refuses
from tests.infrastructure.jobs.plant import Plant, context, open_plant, pipeline

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
    database_url: str, tmp_path: Path, files: list[str], outcome: Outcome
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        plant.work({"step": refuses})
        batch = await plant.batch(dict.fromkeys(files, b"x"))

        done = await plant.completed(batch)
        await plant.completed(await plant.batch({"later.txt": b"x"}))  # time for a second verdict

        assert done.outcome is outcome
        (completed,) = await plant.all_of(BatchCompleted, batch)
        assert sum(completed.counts.values()) == len(files)
        if files:
            assert (await plant.topics(batch))[-2:] == ["batch.progressed", "batch.completed"]


async def test_a_batch_with_a_file_on_its_way_never_completes(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        plant.work({"step": passes})
        still_open = await plant.batch({"a.txt": b"x"}, seal=False)
        await plant.completed(await plant.batch({"a.txt": b"x"}))

        assert "batch.completed" not in await plant.topics(still_open)
        await plant.seal(still_open)
        assert (await plant.completed(still_open)).outcome is Outcome.SUCCEEDED


async def test_counts_never_exceed_the_uploads_of_a_batch_that_failed_and_went_on(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        worker = plant.work({"step": Fails(attempts=1)})
        batch = await plant.batch({f"{n}.txt": b"x" * n for n in range(60)})
        await plant.until(lambda: plant.all_of(BatchProgressed, batch))
        await plant.stop(worker)
        plant.work({"step": Fails(attempts=1)})

        await plant.completed(batch)

        counts = await plant.all_of(BatchProgressed, batch)
        assert all(sum(event.counts.values()) <= 60 for event in counts)
        assert all(0 <= event.percent <= 100 for event in counts)
        assert all(event.bytes_received <= event.bytes_total for event in counts)
        assert counts[-1].counts == {UploadState.COMPLETED: 60}
        assert {u.state for u in (await plant.uploads(batch)).values()} == {UploadState.COMPLETED}


async def test_counts_are_recorded_at_most_four_times_a_second(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        plant.work({"step": passes})
        batch = await plant.batch(seal=False)
        number = count()

        async def counted_often() -> bool:
            await plant.receive(batch, f"{next(number)}.txt", b"x")
            return len(await plant.all_of(BatchProgressed, batch)) >= 4

        await plant.until(counted_often)
        await plant.seal(batch)
        await plant.completed(batch)

        *counts, _ = await plant.all_of(BatchProgressed, batch)  # the last comes with the end
        gaps = [later.at - sooner.at for sooner, later in pairwise(counts)]
        assert min(gap.total_seconds() for gap in gaps) >= 0.25


async def test_cancelling_a_batch_ends_every_upload_and_stops_what_runs(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        gate = Gate()
        plant.orchestrate()
        plant.work({"step": gate})
        batch = await plant.batch({f"{n}.txt": b"x" for n in range(40)}, seal=False)
        await plant.until(lambda: len(gate.inside) == plant.settings.worker_concurrency)

        await plant.cancel(batch)
        done = await plant.completed(batch)
        await plant.until(lambda: not gate.inside)

        assert done.outcome is Outcome.CANCELLED
        uploads = (await plant.uploads(batch)).values()
        assert {upload.state for upload in uploads} == {UploadState.CANCELLED}
        assert len(gate.sent_away) >= plant.settings.worker_concurrency
        for upload in gate.sent_away:
            assert (await plant.topics(upload))[-2:] == [
                "upload.attempt_abandoned",
                "upload.cancelled",
            ]


async def test_no_reason_that_people_give_stops_the_orchestrator(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        batch = await plant.batch({"a.txt": b"x"})

        await plant.cancel(batch, reason="a NUL \0 and a \N{SNOWMAN}")

        assert (await plant.completed(batch)).outcome is Outcome.CANCELLED


async def test_a_paused_batch_starts_nothing_and_goes_on_when_resumed(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        waiting = await plant.batch({f"{n}.txt": b"x" for n in range(10)})
        await plant.until(lambda: _queued(plant, waiting, 10))
        await execute(plant.log, PauseBatch(batch=waiting), context())
        more = await plant.batch({f"{n}.txt": b"x" for n in range(10)}, seal=False)
        await execute(plant.log, PauseBatch(batch=more), context())
        paused = "SELECT count(*) FROM orchestration.batches WHERE paused"
        await plant.until(lambda: _is(plant, paused, 2))
        late = await plant.receive(more, "late.txt", b"x")

        plant.work({"step": passes})
        await plant.completed(await plant.batch({"other.txt": b"x"}))

        assert len(await plant.all_of(AttemptStarted)) == 1  # of the other batch
        assert "upload.queued" not in await plant.topics(late)
        await execute(plant.log, ResumeBatch(batch=waiting), context())
        assert (await plant.completed(waiting)).outcome is Outcome.SUCCEEDED


async def test_one_big_batch_never_blocks_another_owner(database_url: str, tmp_path: Path) -> None:
    async with open_plant(
        database_url, tmp_path, pipelines=ONE_STEP, in_flight_per_batch=10
    ) as plant:
        big = await plant.batch({f"{n}.txt": b"x" for n in range(100)}, owner="acme")
        small = await plant.batch({f"{n}.txt": b"x" for n in range(5)}, owner="globex")
        plant.orchestrate()
        await plant.until(lambda: _queued(plant, small, 5))
        await plant.completed(await plant.batch(owner="third"))
        assert len(await _released(plant, big)) == 10

        plant.work({"step": passes})
        await plant.completed(small)
        await plant.completed(big)

        ends = [r.stream for r in await plant.events() if isinstance(r.event, BatchCompleted)]
        assert ends.index(small) < ends.index(big)


async def test_an_owner_with_many_batches_stays_within_one_window(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(
        database_url, tmp_path, pipelines=ONE_STEP, in_flight_per_owner=15
    ) as plant:
        files = {f"{n}.txt": b"x" for n in range(10)}
        usual = [await plant.batch(files, owner="acme") for _ in range(3)]
        urgent = await plant.batch(files, owner="acme", priority=5)
        plant.orchestrate()
        await plant.until(lambda: _queued(plant, urgent, 10))
        await plant.completed(await plant.batch(owner="other"))

        released = [len(await _released(plant, batch)) for batch in usual]

        assert sorted(released) == [1, 2, 2]  # what the urgent one leaves, in turn


async def test_a_retry_reopens_a_batch_that_was_over(database_url: str, tmp_path: Path) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        plant.orchestrate()
        plant.work({"step": Fails(attempts=1)})
        once = RetryPolicy(attempts=1)
        batch = await plant.batch({"a.txt": b"x"}, retry_policy=once)
        assert (await plant.completed(batch)).outcome is Outcome.FAILED

        (upload,) = (await plant.uploads(batch)).values()
        await execute(plant.log, RetryUpload(upload=upload.id), context())
        await plant.until(lambda: _completions(plant, batch, 2))

        verdicts = await plant.all_of(BatchCompleted, batch)
        assert [event.outcome for event in verdicts] == [Outcome.FAILED, Outcome.SUCCEEDED]
        assert len(await plant.all_of(BatchReopened, batch)) == 1


async def _released(plant: Plant, batch: UUID) -> list[UUID]:
    own = {upload.id for upload in (await plant.uploads(batch)).values()}
    events = await plant.events()
    return [r.stream for r in events if r.stream in own and isinstance(r.event, UploadQueued)]


async def _queued(plant: Plant, batch: UUID, count: int) -> bool:
    return len(await _released(plant, batch)) == count


async def _completions(plant: Plant, batch: UUID, count: int) -> bool:
    return len(await plant.all_of(BatchCompleted, batch)) == count


async def _is(plant: Plant, query: str, value: int) -> bool:
    return await plant.fetch(query) == [(value,)]
