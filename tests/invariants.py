"""Invariants of every log, whatever happened to the processes that wrote it.

Written down a second time, apart from the aggregates: a rule that they got wrong is none here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from application.append import RecordedEvent
from domain.batch.events import BatchEvent
from domain.event import Event, topic_of
from domain.upload.events import UploadEvent

INCOMING = frozenset({"registered", "transferring"})
WAITING = frozenset({"queued", "retry_scheduled"})
UNFINISHED = INCOMING | WAITING | {"received", "processing"}
ENDED = frozenset(
    {"completed", "failed", "quarantined", "rejected", "cancelled", "expired", "erased"}
)

# Of each event: the states it may be met in, and the one it leads to. `passed` and `given up` last
# no longer than an append: the next event says what has become of the upload.
_UPLOAD: Mapping[str, tuple[Iterable[str], str]] = {
    "upload.registered": ({""}, "registered"),
    "upload.rejected": ({""}, "rejected"),
    "upload.size_declared": (INCOMING, "="),
    "upload.transfer_interrupted": (INCOMING, "transferring"),
    "upload.bytes_lost": (INCOMING, "transferring"),
    "upload.file_received": (INCOMING, "received"),
    "upload.queued": ({"received"}, "queued"),
    "upload.attempt_started": (WAITING, "processing"),
    "upload.attempt_abandoned": ({"processing"}, "queued"),
    "upload.attempt_succeeded": ({"processing"}, "passed"),
    "upload.completed": ({"passed", "released"}, "completed"),
    "upload.failed": ({"given up"}, "failed"),
    "upload.quarantined": ({"given up"}, "quarantined"),
    "upload.cancelled": (UNFINISHED - {"processing"}, "cancelled"),
    "upload.expired": (INCOMING, "expired"),
    "upload.retry_requested": ({"failed"}, "received"),
    "upload.released": ({"quarantined"}, "released"),
    "upload.erased": (ENDED - {"erased"}, "erased"),
}
_BATCH: Mapping[str, tuple[Iterable[str], str]] = {
    "batch.started": ({""}, "open"),
    "batch.uploads_added": ({"open"}, "="),
    "batch.sealed": ({"open"}, "sealed"),
    "batch.progressed": ({"open", "sealed", "cancelling", "completed"}, "="),
    "batch.paused": ({"open", "sealed"}, "="),
    "batch.resumed": ({"open", "sealed"}, "="),
    "batch.prioritized": ({"open", "sealed"}, "="),
    "batch.retry_requested": ({"open", "sealed"}, "="),
    "batch.renamed": ({"open", "sealed", "cancelling", "completed"}, "="),
    "batch.cancelled": ({"open", "sealed"}, "cancelling"),
    "batch.expired": ({"open"}, "cancelling"),
    "batch.completed": ({"sealed", "cancelling"}, "completed"),
    "batch.reopened": ({"completed"}, "sealed"),
}


class InvariantViolated(AssertionError):
    """An invariant does not hold: in which stream, at which event."""


class FinalStates(NamedTuple):
    """The states that valid histories lead to: of uploads with their batches, and of batches."""

    uploads: dict[UUID, str]
    batch_of: dict[UUID, UUID]
    batches: dict[UUID, str]
    outcomes: dict[UUID, str]

    def counts(self, batch: UUID) -> Counter[str]:
        """Return the number of uploads of the batch in each state, counted one by one."""
        return Counter(
            state for upload, state in self.uploads.items() if self.batch_of[upload] == batch
        )


def check_log(log: Sequence[RecordedEvent]) -> FinalStates:
    """Check every stream, and return the final states. Raises InvariantViolated."""
    streams: dict[UUID, list[RecordedEvent]] = {}
    for recorded in log:
        streams.setdefault(recorded.stream, []).append(recorded)
    final = FinalStates({}, {}, {}, {})
    for stream, history in streams.items():
        _in_order(history)
        first: Any = history[0].event
        if isinstance(first, UploadEvent):
            final.uploads[stream] = _upload(history)
            final.batch_of[stream] = first.batch
        elif isinstance(first, BatchEvent):  # of webhooks, the order is all there is to say
            final.batches[stream] = _walk(history, _BATCH)
            final.outcomes[stream] = _outcome(history)
    _verdicts(log, final)
    return final


def _in_order(history: Sequence[RecordedEvent]) -> None:
    for place, recorded in enumerate(history, 1):
        _require(recorded.version == place, recorded, f"version {recorded.version} at {place}")
    positions = [recorded.position for recorded in history]
    _require(positions == sorted(set(positions)), history[0], "positions do not rise")


def _walk(history: Sequence[RecordedEvent], table: Mapping[str, tuple[Iterable[str], str]]) -> str:
    state = ""
    for recorded in history:
        state = _next(state, recorded, table)
    return state


def _next(
    state: str, recorded: RecordedEvent, table: Mapping[str, tuple[Iterable[str], str]]
) -> str:
    event: Any = recorded.event
    topic = topic_of(event)
    if topic == "upload.file_progressed":
        allowed: Iterable[str] = {"processing"} if event.attempt else INCOMING
        after = "=" if event.attempt else "transferring"
    elif topic == "upload.attempt_failed":
        allowed, after = {"processing"}, "retry_scheduled" if event.retry_at else "given up"
    else:
        allowed, after = table[topic]
        if topic == "upload.failed" and event.step == "worker":
            allowed = {"queued"}  # right after the loss of one worker too many
    _require(state in allowed, recorded, f"{topic} of what is {state or 'unknown'}")
    return state if after == "=" else after


def _upload(history: Sequence[RecordedEvent]) -> str:
    """Attempts are numbered without a gap; only the one that is open speaks."""
    state, number, worker = "", 0, None
    for recorded in history:
        event: Any = recorded.event
        state = _next(state, recorded, _UPLOAD)
        if topic_of(event) == "upload.attempt_started":
            _require(event.number == number + 1, recorded, f"attempt {event.number} is not next")
            number, worker = event.number, event.worker
        elif (said := getattr(event, "number", getattr(event, "attempt", 0))) != 0:
            _require(said == number, recorded, f"attempt {said} spoke, {number} was open")
            _actor(event, worker, recorded)
    _require(state in UNFINISHED | ENDED, history[-1], f"an append ends {state}")
    return state


def _actor(event: Event, worker: str | None, recorded: RecordedEvent) -> None:
    """An attempt is spoken for by its own worker; others can only abandon it."""
    own = event.by == f"worker:{worker}"
    _require(own or topic_of(event) == "upload.attempt_abandoned", recorded, f"{event.by} spoke")


def _outcome(history: Sequence[RecordedEvent]) -> str:
    """The last verdict of a batch, empty where it has none."""
    for recorded in reversed(history):
        event: Any = recorded.event
        if topic_of(event) == "batch.reopened":
            return ""
        if topic_of(event) == "batch.completed":
            return str(event.outcome)
    return ""


def _verdicts(log: Sequence[RecordedEvent], final: FinalStates) -> None:
    """A verdict counts all uploads that had joined, each once, and finds all of them ended."""
    joined: Counter[UUID] = Counter()
    for recorded in log:
        event: Any = recorded.event
        topic = topic_of(event)
        if topic in ("upload.registered", "upload.rejected"):
            joined[event.batch] += 1
        elif topic == "batch.completed":
            counted = sum(event.counts.values())
            known = joined[recorded.stream]
            _require(counted == known, recorded, f"{counted} uploads counted of {known}")
            _require(set(event.counts) <= ENDED, recorded, f"a verdict on {event.counts}")
        elif topic == "batch.progressed":
            counted, known = sum(event.counts.values()), joined[recorded.stream]
            _require(counted <= known, recorded, f"{counted} uploads counted of {known}")
    for upload, batch in final.batch_of.items():
        if batch not in final.batches:
            raise InvariantViolated(f"upload {upload} belongs to no batch")


def _require(lawful: bool, recorded: RecordedEvent, otherwise: str) -> None:
    if not lawful:
        place = f"stream {recorded.stream}, version {recorded.version}"
        raise InvariantViolated(f"{place}, position {recorded.position}: {otherwise}")
