"""What follows from the state of a batch's uploads: the events the orchestrator records."""

from __future__ import annotations

from datetime import datetime

from application.orchestrator.members import Followed, Member, Tally
from domain.batch.events import BatchEvent
from domain.batch.state import BatchState, Outcome, all_ended
from domain.upload.events import UploadEvent
from domain.upload.state import INCOMING, UploadState

BY = "orchestrator"

ENDING = (BatchState.SEALED, BatchState.CANCELLING)


def settle(
    batch: Followed,
    tally: Tally,
    *,
    through: int,
    at: datetime,
    due: bool,
    retrying: bool = False,
) -> tuple[BatchEvent, ...]:
    """The count, if it is due and new; the verdict, once every upload of the batch has ended.

    A verdict is recorded with the count it rests on, and so is a pause because too many
    failed. `through` is the position in the log up to which the uploads were counted; while
    `retrying`, some of the ended ones are about to begin again.
    """
    events: list[BatchEvent] = []
    aggregate = batch.aggregate()
    ended = all_ended(tally.counts)
    reason = _reopened(batch, tally) if batch.state is BatchState.COMPLETED else None
    if reason:
        (reopened,) = aggregate.reopen(reason, at=at, by=BY)
        events.append(reopened)
        aggregate = aggregate.evolve(reopened)
    ends = aggregate.state in ENDING and ended and not retrying
    stops = () if ended or retrying else aggregate.pause_if_failing(tally.counts, at=at, by=BY)
    if tally.counts and (ends or due or stops):
        events.extend(
            aggregate.record_progress(
                tally.counts,
                bytes_received=tally.bytes_received,
                bytes_total=tally.bytes_total,
                through=through,
                at=at,
                by=BY,
            )
        )
    if ends:
        events.extend(aggregate.complete(tally.counts, at=at, by=BY))
    return (*events, *stops)


def _reopened(batch: Followed, tally: Tally) -> str | None:
    """Why a verdict does not stand any more; None where it does."""
    if not all_ended(tally.counts):
        return "an upload is to be processed again"
    known = batch.progress.counts if batch.progress else {}
    completed = UploadState.COMPLETED
    if batch.ending is None and tally.counts.get(completed, 0) > known.get(completed, 0):
        return "an upload was released from quarantine"
    return None


def try_again(member: Member, *, at: datetime) -> tuple[UploadEvent, ...]:
    """A failed upload begins anew, because its whole batch is retried."""
    return member.aggregate().request_retry(at=at, by=BY)


def expire(batch: Followed, *, at: datetime) -> tuple[BatchEvent, ...]:
    """The end of an open batch that nobody went on with."""
    return batch.aggregate().expire(at=at, by=BY)


def call_off(
    member: Member, ending: Outcome | None, reason: str, *, at: datetime
) -> tuple[UploadEvent, ...]:
    """The end of an unfinished upload whose batch was cancelled, or expired."""
    upload = member.aggregate()
    if ending is Outcome.EXPIRED and upload.state in INCOMING:
        return upload.expire(at=at, by=BY)
    return upload.cancel(reason, at=at, by=BY)


def abandon(member: Member, *, max_losses: int, at: datetime) -> tuple[UploadEvent, ...]:
    """End the open attempt of a lost worker; the upload fails with loss number `max_losses`."""
    reason = f"worker {member.worker} is gone"
    return member.aggregate().lose_worker(
        member.attempt, reason, max_losses=max_losses, at=at, by=BY
    )


def release(member: Member, *, at: datetime) -> tuple[UploadEvent, ...]:
    """The upload goes to the workers."""
    return member.aggregate().queue(at=at, by=BY)
