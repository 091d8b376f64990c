"""How uploads travel to the workers: several to a job, in the order of their turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from application.orchestrator.members import Member

JOB_BYTES = 64 * 1024 * 1024  # a job is not filled beyond this many bytes


class Job(msgspec.Struct, frozen=True):
    """Uploads of one batch that travel together, from `at` on; None is at once."""

    batch: UUID
    uploads: tuple[UUID, ...]
    at: datetime | None = None


def into_jobs(released: Sequence[Member], *, workers: int, most: int) -> list[Job]:
    """Jobs of up to `most` uploads, and of fewer where that gives every worker something.

    The order of the jobs is that of the first upload of each: fair, if `released` is. To a worker
    that is alone, fewer and larger jobs are less work: it runs the uploads of a job side by side.
    An upload whose processing has cost a worker before gets a job of its own.
    """
    share = -(-len(released) // (2 * workers)) if workers > 1 else len(released)
    limit = max(1, min(most, share))
    filling: dict[UUID, list[Member]] = {}
    jobs: list[list[Member]] = []
    for member in released:
        if member.losses:
            jobs.append([member])
            continue
        job = filling.get(member.batch)
        if job is None or len(job) >= limit or _bytes(job) >= JOB_BYTES:
            job = filling[member.batch] = []
            jobs.append(job)
        job.append(member)
    return [Job(job[0].batch, tuple(member.upload for member in job)) for job in jobs]


def retries(members: Iterable[Member]) -> list[Job]:
    """A job of its own for each upload, at the moment its policy chose."""
    return [Job(member.batch, (member.upload,), member.retry_at) for member in members]


def _bytes(job: list[Member]) -> int:
    return sum(member.received for member in job)
