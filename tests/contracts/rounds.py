"""Contract of the orchestrator's tables; the tests of each adapter run all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from operator import attrgetter
from random import Random
from typing import Any, Protocol, TypeAlias
from uuid import UUID

import pytest

from application.append import AppendResult, append_to_stream
from application.errors import Conflict
from application.orchestrator import Job, RoundConsequences
from application.ports.event_log import EventLog
from application.ports.jobs import RunnableUploads
from application.ports.orchestration import Rounds, RoundSelection
from application.tracked_batches import TrackedBatch, TrackedUpload, TrackingChanges
from domain.batch.aggregate import Batch
from domain.batch.events import BatchProgressed
from domain.batch.state import BatchState, Outcome
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState
from infrastructure.database_errors import LeadershipLost
from infrastructure.settings import Settings
from tests.builders import NOON, later, queued, received, registered

NOTHING = RoundConsequences(jobs=(), uploads=(), batches=(), dirty=frozenset())
SETTINGS = Settings(
    in_flight_per_batch=4, in_flight_per_owner=6, batch_progress_interval=10.0, batch_expiry=100.0
)


class RoundsHarness(Protocol):
    """Tables of an adapter, and what workers do to the job queue."""

    rounds: Rounds
    log: EventLog
    runnable: RunnableUploads

    async def now(self) -> datetime:
        """Return the time of the database's clock."""

    async def register_worker(self, *, silent_for: float) -> int:
        """Register a worker whose last heartbeat was so many seconds ago."""

    async def start_job(self, job: int, worker: int) -> None:
        """Mark a job as taken by this worker."""

    async def jobs(self) -> list[tuple[int, str, list[str], datetime | None]]:
        """Return the id, status, uploads and time of every job, by id."""


OpenRounds: TypeAlias = Callable[[Settings], AbstractAsyncContextManager[RoundsHarness]]


def batch_of(number: int, owner: str = "acme", **more: Any) -> TrackedBatch:
    batch = Batch(id=UUID(int=number << 64), owner=owner, version=1, started_at=NOON, **more)
    return TrackedBatch(batch=batch, active_at=NOON)


def upload_of(batch: TrackedBatch, number: int, state: UploadState, **more: Any) -> TrackedUpload:
    id = UUID(int=batch.batch.id.int + number)
    fields = {name: more.pop(name) for name in ("retry_at", "job") if name in more}
    known = {"version": 2, "size": 10, "received": 10, **more}
    upload = Upload(id=id, batch=batch.batch.id, owner=batch.batch.owner, state=state, **known)
    return TrackedUpload(upload=upload, **fields)


def changes_of(
    batches: Iterable[TrackedBatch], uploads: Iterable[TrackedUpload], *retried: TrackedBatch
) -> TrackingChanges:
    return TrackingChanges(
        uploads={tracked.upload.id: tracked for tracked in uploads},
        batches={tracked.batch.id: tracked for tracked in batches},
        batch_retries={tracked.batch.id for tracked in retried},
    )


async def saved(
    harness: RoundsHarness, changes: TrackingChanges, at: datetime = NOON
) -> RoundSelection:
    """Save the changes in a round of their own, and return what it selected."""
    position = await harness.rounds.load_position()
    async with harness.rounds.begin(position) as round:
        selected = await round.save_and_select(changes, through=position + 1, at=at)
        await round.save(NOTHING)
    return selected


def ids(uploads: Iterable[TrackedUpload]) -> list[int]:
    """Return the numbers of uploads within their batches."""
    return [tracked.upload.id.int & (2**64 - 1) for tracked in uploads]


class RoundsContract:
    """Subclasses give `open_rounds`, which opens empty tables with these settings."""

    @pytest.fixture
    def open_rounds(self) -> OpenRounds:
        raise NotImplementedError

    async def test_a_round_that_fails_changes_nothing(self, open_rounds: OpenRounds) -> None:
        batch = batch_of(1)
        upload = upload_of(batch, 1, UploadState.RECEIVED)
        async with open_rounds(SETTINGS) as harness:
            with pytest.raises(RuntimeError):
                async with harness.rounds.begin(await harness.rounds.load_position()) as round:
                    await round.save_and_select(changes_of([batch], [upload]), through=7, at=NOON)
                    await round.append([append_to_stream(upload.upload.id, 0, registered())])
                    await round.save(
                        RoundConsequences(
                            jobs=(Job(batch.batch.id, (upload.upload.id,)),),
                            uploads=(upload,),
                            batches=(),
                            dirty=frozenset(),
                        )
                    )
                    raise RuntimeError

            assert await harness.rounds.load_position() == 0
            async with harness.rounds.begin(0) as round:
                assert await round.load([upload.upload.id], [batch.batch.id]) == ({}, {})
            assert await harness.log.head() == 0
            assert await harness.jobs() == []

    async def test_a_round_after_another_position_is_refused(self, open_rounds: OpenRounds) -> None:
        async with open_rounds(SETTINGS) as harness:
            await saved(harness, changes_of([batch_of(1)], []))
            with pytest.raises(LeadershipLost):
                async with harness.rounds.begin(0):
                    pass

    async def test_each_append_of_a_round_gets_its_own_result(
        self, open_rounds: OpenRounds
    ) -> None:
        streams = [UUID(int=number) for number in (1, 2)]
        async with open_rounds(SETTINGS) as harness:
            await harness.log.append(append_to_stream(streams[0], 0, registered()))
            async with harness.rounds.begin(await harness.rounds.load_position()) as round:
                await round.save_and_select(changes_of([], []), through=1, at=NOON)
                results = await round.append(
                    [append_to_stream(stream, 0, registered()) for stream in streams]
                )
                await round.save(NOTHING)

            assert [type(result) for result in results] == [Conflict, AppendResult]
            assert await harness.log.versions(streams) == dict.fromkeys(streams, 1)

    async def test_ready_uploads_fill_the_windows_of_batches_and_owners(
        self, open_rounds: OpenRounds
    ) -> None:
        first, second, other = batch_of(1), batch_of(2, priority=1), batch_of(3, "globex")
        uploads = [
            upload_of(batch, number, UploadState.RECEIVED)
            for batch in (first, second, other)
            for number in range(1, 6)
        ]
        async with open_rounds(SETTINGS) as harness:
            selected = await saved(harness, changes_of([first, second, other], uploads))

            chosen = [
                (t.upload.owner, t.upload.batch.int >> 64, n)
                for t, n in zip(selected.ready, ids(selected.ready), strict=True)
            ]
            assert chosen == [
                *(("acme", 2, 1), ("globex", 3, 1)),
                *(("acme", 2, 2), ("globex", 3, 2)),
                *(("acme", 2, 3), ("globex", 3, 3)),
                *(("acme", 2, 4), ("globex", 3, 4)),
                *(("acme", 1, 1), ("acme", 1, 2)),
            ]

    async def test_paused_and_ended_batches_have_no_ready_uploads(
        self, open_rounds: OpenRounds
    ) -> None:
        batches = [
            batch_of(1, paused=True),
            batch_of(2, state=BatchState.CANCELLING, pending_outcome=Outcome.CANCELLED),
            batch_of(3, state=BatchState.SEALED),
        ]
        uploads = [upload_of(batch, 1, UploadState.RECEIVED) for batch in batches]
        async with open_rounds(SETTINGS) as harness:
            selected = await saved(harness, changes_of(batches, uploads))

            assert [t.upload.batch for t in selected.ready] == [batches[2].batch.id]
            assert [one.tracked.upload.batch for one in selected.to_cancel] == [batches[1].batch.id]

    async def test_failed_uploads_of_a_retried_batch_are_met_once(
        self, open_rounds: OpenRounds
    ) -> None:
        batch = batch_of(1)
        uploads = [upload_of(batch, number, UploadState.FAILED) for number in (3, 1, 2)]
        uploads.append(upload_of(batch, 4, UploadState.COMPLETED))
        async with open_rounds(SETTINGS) as harness:
            assert (await saved(harness, changes_of([batch], uploads, batch))).has_batch_retries
            async with harness.rounds.begin(await harness.rounds.load_position()) as round:
                await round.save_and_select(changes_of([], []), through=9, at=NOON)
                found = await round.next_failed_uploads()
                await round.save(NOTHING)
            assert ids(found[batch.batch.id]) == [1, 2, 3]
            assert not (await saved(harness, changes_of([], []))).has_batch_retries

    async def test_a_retry_goes_page_by_page_and_another_request_begins_it_again(
        self, open_rounds: OpenRounds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("infrastructure.jobs.selection", "tests.memory.rounds"):
            monkeypatch.setattr(f"{module}.MAX_ROUND_UPLOADS", 2)
        batch = batch_of(1)
        uploads = [upload_of(batch, number, UploadState.FAILED) for number in (1, 2, 3, 4)]
        async with open_rounds(SETTINGS) as harness:

            async def page() -> list[int]:
                position = await harness.rounds.load_position()
                async with harness.rounds.begin(position) as round:
                    await round.save_and_select(changes_of([], []), through=position + 1, at=NOON)
                    found = await round.next_failed_uploads()
                    await round.save(NOTHING)
                return ids(found.get(batch.batch.id, ()))

            await saved(harness, changes_of([batch], uploads, batch))
            assert await page() == [1, 2]
            await saved(harness, changes_of([], [], batch))
            assert [await page() for _ in range(4)] == [[1, 2], [3, 4], [], []]

    async def test_of_a_paused_batch_only_open_attempts_are_lost(
        self, open_rounds: OpenRounds
    ) -> None:
        batch = batch_of(1, paused=True)
        states = (UploadState.QUEUED, UploadState.PROCESSING, UploadState.RETRY_SCHEDULED)
        uploads = [upload_of(batch, number, state) for number, state in enumerate(states)]
        async with open_rounds(SETTINGS) as harness:
            await saved(harness, changes_of([batch], uploads))
            async with harness.rounds.begin(await harness.rounds.load_position()) as round:
                await round.save_and_select(changes_of([], []), through=9, at=NOON)
                assert ids(await round.find_lost()) == [1]
                await round.save(NOTHING)

    async def test_uploads_without_a_job_are_lost_and_those_of_silent_workers_too(
        self, open_rounds: OpenRounds
    ) -> None:
        batch, settings = batch_of(1), Settings(worker_dead_after=30.0)
        uploads = [upload_of(batch, number, UploadState.QUEUED) for number in (1, 2, 3)]
        async with open_rounds(settings) as harness:
            async with harness.rounds.begin(await harness.rounds.load_position()) as round:
                await round.save_and_select(changes_of([batch], uploads), through=1, at=NOON)
                await round.save(
                    RoundConsequences(
                        jobs=tuple(Job(batch.batch.id, (t.upload.id,)) for t in uploads[:2]),
                        uploads=tuple(uploads),
                        batches=(),
                        dirty=frozenset(),
                    )
                )
            first, second = [id for id, *_ in await harness.jobs()]
            await harness.start_job(first, await harness.register_worker(silent_for=1.0))
            await harness.start_job(second, await harness.register_worker(silent_for=60.0))

            async with harness.rounds.begin(1) as round:
                selected = await round.save_and_select(changes_of([], []), through=2, at=NOON)
                lost = await round.find_lost()
                await round.save(NOTHING)

            assert selected.workers == 2
            assert sorted(ids(lost)) == [2, 3]
            assert [id for id, *_ in await harness.jobs()] == [first]
            assert (await saved(harness, changes_of([], []))).workers == 1

    async def test_a_job_tells_its_uploads_and_its_time(self, open_rounds: OpenRounds) -> None:
        batch = batch_of(1)
        uploads = [upload_of(batch, number, UploadState.QUEUED) for number in (1, 2, 3)]
        async with open_rounds(SETTINGS) as harness:
            jobs = (
                Job(batch.batch.id, tuple(t.upload.id for t in uploads[:2])),
                Job(batch.batch.id, (uploads[2].upload.id,), later(60)),
            )
            async with harness.rounds.begin(await harness.rounds.load_position()) as round:
                await round.save_and_select(changes_of([batch], uploads), through=1, at=NOON)
                await round.save(
                    RoundConsequences(
                        jobs=jobs, uploads=tuple(uploads), batches=(), dirty=frozenset()
                    )
                )
            (one, two) = await harness.jobs()
            assert one[1:] == ("todo", [str(id) for id in jobs[0].uploads], None)
            assert two[1:] == ("todo", [str(uploads[2].upload.id)], later(60))
            async with harness.rounds.begin(1) as round:
                known, _ = await round.load([t.upload.id for t in uploads], [])
            assert [known[t.upload.id].job for t in uploads] == [one[0], one[0], two[0]]

    async def test_a_worker_gets_uploads_of_running_batches_as_the_log_has_them(
        self, open_rounds: OpenRounds
    ) -> None:
        batches = [batch_of(1), batch_of(2, paused=True)]
        async with open_rounds(SETTINGS) as harness:
            past = await harness.now() - timedelta(seconds=1)
            uploads = [
                upload_of(batches[0], 1, UploadState.QUEUED, version=3),
                upload_of(batches[0], 2, UploadState.RETRY_SCHEDULED, version=3, retry_at=past),
                upload_of(batches[0], 3, UploadState.RETRY_SCHEDULED, version=2, retry_at=past),
                upload_of(batches[1], 4, UploadState.QUEUED, version=3),
            ]
            for tracked in uploads:
                await harness.log.append(
                    append_to_stream(tracked.upload.id, 0, registered(), received(), queued())
                )
            await saved(harness, changes_of(batches, uploads))
            loaded = await harness.runnable.load([t.upload.id for t in uploads])

            assert [(one.upload.id, one.retry_due) for one in loaded] == [
                (uploads[0].upload.id, False),
                (uploads[1].upload.id, True),  # at the version that its retry belongs to
                (uploads[2].upload.id, False),
            ]
            assert {one.upload.version for one in loaded} == {3}


# Two adapters with the same rows select the same.

STATES = tuple(UploadState)


def random_changes(random: Random, at: datetime) -> TrackingChanges:
    """Return rows of a few batches in any states, some of them known before."""
    batches, uploads = [], []
    for number in range(random.randint(1, 5)):
        state = random.choice(list(BatchState))
        ending = random.choice((Outcome.CANCELLED, Outcome.EXPIRED))
        progress = BatchProgressed(
            at=at - timedelta(seconds=random.randint(0, 20)),
            by="",
            counts={UploadState.COMPLETED: random.randint(1, 20_000)},
            bytes_received=1,
            bytes_total=2,
            percent=50.0,
            through=0,
        )
        batch = batch_of(
            number + 1,
            ("acme", "globex")[number % 2],
            state=state,
            sealed=state is not BatchState.OPEN,
            paused=random.random() < 0.2,
            priority=random.randint(-1, 1),
            pending_outcome=ending if state is BatchState.CANCELLING else None,
            progress=random.choice((None, progress)),
        )
        active_at = at - timedelta(seconds=random.choice((1, 1000)))
        batch = TrackedBatch(
            batch=batch.batch, active_at=active_at, reason="why", dirty=random.random() < 0.8
        )
        batches.append(batch)
        uploads += [
            upload_of(
                batch,
                place,
                random.choice(STATES),
                size=random.choice((None, 5, 10)),
                received=random.randint(0, 5),
                attempt=random.randint(0, 3),
                losses=random.randint(0, 2),
                job=random.choice((None, 1, 2, 3)),
            )
            for place in range(random.randint(0, 12))
        ]
    return changes_of(batches, uploads, *batches[: random.randint(0, 1)])


async def everything_selected(
    harness: RoundsHarness, changes: TrackingChanges, *, after: int, at: datetime
) -> list[Any]:
    """Return all answers of one round, in an order that does not depend on the adapter."""
    by_upload, by_batch = attrgetter("upload.id"), attrgetter("batch.id")
    async with harness.rounds.begin(after) as round:
        loaded = await round.load(changes.uploads, changes.batches)
        selected = await round.save_and_select(changes, through=after + 1, at=at)
        failed = await round.next_failed_uploads()
        lost = await round.find_lost()
        idle = await round.find_idle(at)
        to_count = sorted(selected.to_count, key=attrgetter("tracked.batch.id"))
        counts = await round.count_uploads([one.tracked.batch.id for one in to_count])
        ready = [t for t in selected.ready if t.upload.id.int % 2]
        jobs = [Job(t.upload.batch, (t.upload.id,), at) for t in ready]
        consequences = RoundConsequences(
            jobs=tuple(jobs),
            uploads=tuple(ready),
            batches=tuple(one.tracked.mark_clean() for one in to_count[:1]),
            dirty=frozenset(t.upload.batch for t in ready),
        )
        due = await round.save(consequences)
    return [
        loaded,
        sorted(selected.to_cancel, key=attrgetter("tracked.upload.id")),
        list(selected.ready),
        to_count,
        (selected.has_batch_retries, selected.workers),
        {batch: list(found) for batch, found in failed.items()},
        sorted(lost, key=by_upload),
        sorted(idle, key=by_batch),
        dict(counts),
        due,
        await harness.jobs(),
    ]
