"""The orchestrator's decisions as a pure function: `plan_round` of what a round has loaded.

`infrastructure.jobs.orchestrator` loads the inputs, appends the decisions, and stores the
consequences of those that the log accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec.structs import replace

from application.append import Append, append_to_stream
from application.tracked_batches import BatchCounts, TrackedBatch, TrackedUpload
from domain.batch.aggregate import Batch
from domain.batch.events import BatchEvent
from domain.batch.state import BatchState, Outcome, all_ended
from domain.event import Event
from domain.upload.aggregate import Upload
from domain.upload.events import UploadEvent
from domain.upload.state import INCOMING, UploadState

ORCHESTRATOR = "orchestrator"  # the principal of its events
MAX_JOB_BYTES = 64 * 1024 * 1024  # beyond which a job takes no further upload


class UploadToCancel(msgspec.Struct, frozen=True):
    """Unfinished upload of a batch that was cancelled or has expired, and why it was."""

    tracked: TrackedUpload
    ending: Outcome | None
    reason: str


class BatchToCount(msgspec.Struct, frozen=True):
    """Batch with the counts of its uploads.

    `is_due` is whether a count is to be recorded for its own sake; while `is_retrying`, failed
    uploads of the batch are about to begin again.
    """

    tracked: TrackedBatch
    counts: BatchCounts
    is_due: bool
    is_retrying: bool


class RoundInputs(msgspec.Struct, frozen=True, kw_only=True):
    """State of the tables after the events up to position `through`, as far as a round needs it.

    `lost` are uploads without a job, None if the round has not looked for them; `suspects` are
    those of the previous check, each with its version then. `is_resumed` is whether a paused
    batch was resumed: workers dropped its jobs in the pause, and no second check is needed.
    """

    through: int
    to_cancel: Sequence[UploadToCancel] = ()
    to_retry: Mapping[UUID, Sequence[TrackedUpload]] = {}  # next failed uploads by batch
    lost: Sequence[TrackedUpload] | None = None
    suspects: Mapping[UUID, int] = {}
    is_resumed: bool = False
    idle: Sequence[TrackedBatch] = ()  # open batches that expire
    retries: Sequence[TrackedUpload] = ()  # failed just now, with a time for the next attempt
    ready: Sequence[TrackedUpload] = ()  # in the order in which they are enqueued
    to_count: Sequence[BatchToCount] = ()
    workers: int = 1
    max_losses: int = 1
    max_job_uploads: int = 1


class Job(msgspec.Struct, frozen=True):
    """Uploads of one batch that a worker gets together, from `at` on; None is at once."""

    batch: UUID
    uploads: tuple[UUID, ...]
    at: datetime | None = None


class Decision(msgspec.Struct, frozen=True):
    """Events for one upload or one batch, and what follows if the log accepts them.

    `needs_job` is whether the upload is then to be enqueued, `is_count` whether the batch is
    then clean.
    """

    subject: TrackedUpload | TrackedBatch
    events: tuple[Event, ...]
    needs_job: bool = False
    is_count: bool = False

    @property
    def append(self) -> Append:
        subject = self.subject
        aggregate = subject.upload if isinstance(subject, TrackedUpload) else subject.batch
        return append_to_stream(
            aggregate.id, aggregate.version, *self.events, owner=aggregate.owner
        )


class RoundPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions of one round.

    `stranded` uploads get a new job as they are; the counts of `unchanged` batches are recorded
    already. `suspects` are for the next check.
    """

    decisions: tuple[Decision, ...]
    stranded: tuple[TrackedUpload, ...]
    unchanged: tuple[TrackedBatch, ...]
    suspects: Mapping[UUID, int]
    workers: int
    max_job_uploads: int

    def consequences(self, accepted: Sequence[bool]) -> RoundConsequences:
        """Return what follows from the decisions that the log has accepted."""
        uploads: list[TrackedUpload] = []
        enqueued: list[TrackedUpload] = []
        batches: list[TrackedBatch] = []
        for decision, is_accepted in zip(self.decisions, accepted, strict=True):
            if not is_accepted:
                continue
            subject = _evolved(decision)
            if isinstance(subject, TrackedUpload):
                uploads.append(subject)
                if decision.needs_job:
                    enqueued.append(subject)
            else:
                batches.append(subject.mark_clean() if decision.is_count else subject)
        dirty = frozenset(tracked.upload.batch for tracked in uploads)
        enqueued += [t for t in self.stranded if t.upload.state is UploadState.QUEUED]
        waiting = [t for t in self.stranded if t.upload.state is UploadState.RETRY_SCHEDULED]
        jobs = pack_jobs(enqueued, workers=self.workers, max_uploads=self.max_job_uploads)
        return RoundConsequences(
            jobs=(*jobs, *retry_jobs(waiting)),
            uploads=(*uploads, *self.stranded),
            batches=(*batches, *(tracked.mark_clean() for tracked in self.unchanged)),
            dirty=dirty,
        )


class RoundConsequences(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs to defer and rows to save; the `dirty` batches are to be counted again."""

    jobs: tuple[Job, ...]
    uploads: tuple[TrackedUpload, ...]
    batches: tuple[TrackedBatch, ...]
    dirty: frozenset[UUID]

    def uploads_with_jobs(self, jobs: Mapping[UUID, int]) -> list[TrackedUpload]:
        """Return the uploads, each with the id of the job that carries it."""
        return [replace(t, job=jobs.get(t.upload.id, t.job)) for t in self.uploads]


def plan_round(inputs: RoundInputs, at: datetime) -> RoundPlan:
    """Decide what follows from the state of all tracked uploads and batches.

    Every upload and every batch gets at most one decision.
    """
    decisions = [
        Decision(
            each.tracked, cancel_or_expire(each.tracked.upload, each.ending, each.reason, at=at)
        )
        for each in inputs.to_cancel
    ]
    for failed in inputs.to_retry.values():
        decisions += (
            Decision(tracked, tracked.upload.request_retry(at=at, by=ORCHESTRATOR))
            for tracked in failed
        )
    stranded: dict[UUID, TrackedUpload] = {}
    for tracked in _confirmed_lost(inputs):
        if tracked.upload.state is UploadState.PROCESSING:
            events = abandon_attempt(tracked.upload, max_losses=inputs.max_losses, at=at)
            decisions.append(Decision(tracked, events, needs_job=len(events) == 1))
        else:
            stranded[tracked.upload.id] = tracked
    decisions += (
        Decision(tracked, tracked.batch.expire(at=at, by=ORCHESTRATOR)) for tracked in inputs.idle
    )
    # An upload whose batch was cancelled meanwhile is not tried again.
    decided = {d.subject.upload.id for d in decisions if isinstance(d.subject, TrackedUpload)}
    stranded |= {t.upload.id: t for t in inputs.retries if t.upload.id not in decided}
    decisions += (
        Decision(tracked, tracked.upload.queue(at=at, by=ORCHESTRATOR), needs_job=True)
        for tracked in inputs.ready
    )
    counts, unchanged = _count_batches(inputs, at)
    return RoundPlan(
        decisions=(*decisions, *counts),
        stranded=tuple(stranded.values()),
        unchanged=tuple(unchanged),
        suspects=_suspects_after(inputs),
        workers=inputs.workers,
        max_job_uploads=inputs.max_job_uploads,
    )


def _count_batches(inputs: RoundInputs, at: datetime) -> tuple[list[Decision], list[TrackedBatch]]:
    """Return the counts and completions to record, and the batches that stay as they are.

    A batch that expires in this round is counted in the next.
    """
    expiring = {tracked.batch.id for tracked in inputs.idle}
    decisions: list[Decision] = []
    unchanged: list[TrackedBatch] = []
    for batch in inputs.to_count:
        id = batch.tracked.batch.id
        if id in expiring:
            continue
        is_retrying = batch.is_retrying or id in inputs.to_retry
        events = progress_and_completion(
            batch.tracked.batch,
            batch.counts,
            through=inputs.through,
            at=at,
            is_due=batch.is_due,
            is_retrying=is_retrying,
        )
        if events:
            # While it is retried it stays dirty: nothing else would complete it afterwards.
            decisions.append(Decision(batch.tracked, events, is_count=not is_retrying))
        elif not is_retrying:
            unchanged.append(batch.tracked)
    return decisions, unchanged


def _evolved(decision: Decision) -> TrackedUpload | TrackedBatch:
    subject = decision.subject
    for event in decision.events:
        subject = subject.evolve(event)  # type: ignore[arg-type]
    return subject


def progress_and_completion(
    batch: Batch,
    counts: BatchCounts,
    *,
    through: int,
    at: datetime,
    is_due: bool,
    is_retrying: bool = False,
) -> tuple[BatchEvent, ...]:
    """Return the count, if it is due and new, and the completion, if all uploads have ended.

    A completion is recorded with the count it follows from, and so is a pause because too many
    uploads failed. `through` is the position in the log up to which the uploads were counted.
    """
    events: list[BatchEvent] = []
    ended = all_ended(counts.by_state)
    reason = _reopening_reason(batch, counts)
    if reason:
        (reopened,) = batch.reopen(reason, at=at, by=ORCHESTRATOR)
        events.append(reopened)
        batch = batch.evolve(reopened)
    completes = batch.state in (BatchState.SEALED, BatchState.CANCELLING)
    completes = completes and ended and not is_retrying
    pauses: tuple[BatchEvent, ...] = ()
    if not ended and not is_retrying:
        pauses = batch.pause_if_failing(counts.by_state, at=at, by=ORCHESTRATOR)
    if counts.by_state and (completes or is_due or pauses):
        events += batch.record_progress(
            counts.by_state,
            bytes_received=counts.bytes_received,
            bytes_total=counts.bytes_total,
            through=through,
            at=at,
            by=ORCHESTRATOR,
        )
    if completes:
        events += batch.complete(counts.by_state, at=at, by=ORCHESTRATOR)
    return (*events, *pauses)


def _reopening_reason(batch: Batch, counts: BatchCounts) -> str | None:
    """Return why a completed batch is not complete any more, None where it is."""
    if batch.state is not BatchState.COMPLETED:
        return None
    if not all_ended(counts.by_state):
        return "an upload is to be processed again"
    recorded = batch.progress.counts if batch.progress else {}
    completed, before = (of.get(UploadState.COMPLETED, 0) for of in (counts.by_state, recorded))
    if batch.pending_outcome is None and completed > before:
        return "an upload was released from quarantine"
    return None


def cancel_or_expire(
    upload: Upload, ending: Outcome | None, reason: str, *, at: datetime
) -> tuple[UploadEvent, ...]:
    """End an unfinished upload whose batch was cancelled or has expired."""
    if ending is Outcome.EXPIRED and upload.state in INCOMING:
        return upload.expire(at=at, by=ORCHESTRATOR)
    return upload.cancel(reason, at=at, by=ORCHESTRATOR)


def abandon_attempt(upload: Upload, *, max_losses: int, at: datetime) -> tuple[UploadEvent, ...]:
    """End the open attempt of a lost worker; the upload fails with loss number `max_losses`."""
    reason = f"worker {upload.worker} is gone"
    return upload.lose_worker(upload.attempt, reason, max_losses=max_losses, at=at, by=ORCHESTRATOR)


def _confirmed_lost(inputs: RoundInputs) -> Sequence[TrackedUpload]:
    """Return the uploads that two consecutive checks found without a job, at one version.

    A worker records the end of an attempt before the end of its job, and the orchestrator may
    not have read that event yet: one check alone proves nothing.
    """
    found = inputs.lost or ()
    if inputs.is_resumed:
        return found
    return [t for t in found if inputs.suspects.get(t.upload.id) == t.upload.version]


def _suspects_after(inputs: RoundInputs) -> Mapping[UUID, int]:
    if inputs.lost is None or inputs.is_resumed:
        return inputs.suspects
    return {tracked.upload.id: tracked.upload.version for tracked in inputs.lost}


def pack_jobs(uploads: Sequence[TrackedUpload], *, workers: int, max_uploads: int) -> list[Job]:
    """Group uploads into jobs of up to `max_uploads`, of fewer if every worker gets some then.

    The order of the jobs is that of the first upload of each: fair, if `uploads` is. For a single
    worker, fewer and larger jobs are less work: it runs the uploads of a job side by side. An
    upload that was in progress when a worker was lost gets a job of its own.
    """
    share = -(-len(uploads) // (2 * workers)) if workers > 1 else len(uploads)
    limit = max(1, min(max_uploads, share))
    filling: dict[UUID, list[Upload]] = {}
    jobs: list[list[Upload]] = []
    for tracked in uploads:
        upload = tracked.upload
        if upload.losses:
            jobs.append([upload])
            continue
        job = filling.get(upload.batch)
        if job is None or len(job) >= limit or _total_bytes(job) >= MAX_JOB_BYTES:
            job = filling[upload.batch] = []
            jobs.append(job)
        job.append(upload)
    return [Job(job[0].batch, tuple(upload.id for upload in job)) for job in jobs]


def retry_jobs(uploads: Iterable[TrackedUpload]) -> list[Job]:
    """Return a job for each upload, scheduled for the time of its next attempt."""
    return [Job(t.upload.batch, (t.upload.id,), t.retry_at) for t in uploads]


def _total_bytes(job: list[Upload]) -> int:
    return sum(upload.received for upload in job)
