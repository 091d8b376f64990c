from __future__ import annotations

from uuid import UUID

from msgspec.structs import replace

from application.orchestrator.dispatching import JOB_BYTES, into_jobs, retries
from application.orchestrator.members import Member
from domain.upload.state import UploadState
from tests.stories import later

ONE, TWO = UUID(int=1), UUID(int=2)


def ready(number: int, batch: UUID = ONE, size: int = 10) -> Member:
    return Member(
        upload=UUID(int=batch.int * 1000 + number),
        batch=batch,
        owner="acme",
        state=UploadState.QUEUED,
        version=3,
        received=size,
    )


def sizes(released: list[Member], *, workers: int = 1, most: int = 20) -> list[int]:
    return [len(job.uploads) for job in into_jobs(released, workers=workers, most=most)]


def test_uploads_of_one_batch_travel_together() -> None:
    assert sizes([ready(n) for n in range(100)]) == [20] * 5


def test_a_few_uploads_are_spread_over_the_workers() -> None:
    assert sizes([ready(n) for n in range(12)], workers=3) == [2] * 6


def test_a_worker_that_is_alone_gets_them_in_one_job() -> None:
    assert sizes([ready(n) for n in range(12)], workers=1) == [12]


def test_a_job_holds_uploads_of_one_batch_only() -> None:
    released = [ready(n, batch) for n in range(10) for batch in (ONE, TWO)]

    jobs = into_jobs(released, workers=1, most=20)

    assert [(job.batch, len(job.uploads)) for job in jobs] == [(ONE, 10), (TWO, 10)]


def test_one_big_batch_does_not_go_before_all_the_others() -> None:
    released = [ready(n, batch) for n in range(40) for batch in (ONE, TWO)]

    jobs = into_jobs(released, workers=1, most=10)

    assert [job.batch for job in jobs] == [ONE, TWO] * 4


def test_big_files_travel_alone() -> None:
    assert sizes([ready(n, size=JOB_BYTES) for n in range(12)]) == [1] * 12


def test_an_upload_that_has_cost_a_worker_travels_alone() -> None:
    suspect = replace(ready(3), losses=1)

    jobs = into_jobs([ready(1), ready(2), suspect, ready(4)], workers=1, most=20)

    assert [len(job.uploads) for job in jobs] == [3, 1]
    assert jobs[1].uploads == (suspect.upload,)


def test_a_retry_is_a_job_for_the_moment_its_policy_chose() -> None:
    failed = Member(
        upload=UUID(int=5),
        batch=ONE,
        owner="acme",
        state=UploadState.RETRY_SCHEDULED,
        version=5,
        retry_at=later(3),
    )

    (job,) = retries([failed])

    assert (job.uploads, job.at) == ((UUID(int=5),), later(3))
