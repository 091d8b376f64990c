"""What follows from the state of a batch's uploads: the events the orchestrator records."""

from __future__ import annotations

from datetime import datetime

from application.orchestrator.members import Followed, Member, Tally
from domain.batch.events import BatchEvent
from domain.batch.state import BatchState, Outcome, all_ended
from domain.upload.events import UploadEvent
from domain.upload.state import INCOMING

BY = "orchestrator"

ENDING = (BatchState.SEALED, BatchState.CANCELLING)


def settle(
    batch: Followed, tally: Tally, *, through: int, at: datetime, due: bool
) -> tuple[BatchEvent, ...]:
    """The count, if it is due and new; the verdict, once every upload of the batch has ended.

    A verdict is recorded with the count it rests on. `through` is the position in the log
    up to which the uploads were counted.
    """
    events: list[BatchEvent] = []
    aggregate = batch.aggregate()
    ended = all_ended(tally.counts)
    if batch.state is BatchState.COMPLETED and not ended:
        events.extend(aggregate.reopen("an upload is to be processed again", at=at, by=BY))
    ends = batch.state in ENDING and ended
    if tally.counts and (ends or due):
        events.extend(
            aggregate.progress_to(
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
    return tuple(events)


def call_off(
    member: Member, ending: Outcome | None, reason: str, *, at: datetime
) -> tuple[UploadEvent, ...]:
    """The end of an unfinished upload whose batch was cancelled, or expired."""
    upload = member.aggregate()
    if ending is Outcome.EXPIRED and upload.state in INCOMING:
        return upload.expire(at=at, by=BY)
    return upload.cancel(reason, at=at, by=BY)


def abandon(member: Member, *, at: datetime) -> tuple[UploadEvent, ...]:
    """The open attempt of a worker that is gone, or that lost sight of it."""
    reason = f"worker {member.worker} is gone"
    return member.aggregate().abandon_attempt(member.attempt, reason, at=at, by=BY)


def release(member: Member, *, at: datetime) -> tuple[UploadEvent, ...]:
    """The upload goes to the workers."""
    return member.aggregate().queue(at=at, by=BY)
