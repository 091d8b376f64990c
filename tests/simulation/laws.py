"""Laws that hold after every step of a simulation, and those of its end."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from application.append import RecordedEvent
from application.projection import fold_changes
from domain.batch.events import CLOSING, BatchRenamed, BatchStarted
from domain.batch.state import outcome_of
from domain.event import topic_of
from domain.upload.events import AttemptSucceeded
from domain.upload.state import UploadState
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WEBHOOK_EVENTS
from infrastructure.read_model.tables import NAME
from tests.invariants import UNFINISHED, FinalStates, check_log
from tests.memory.blobs import Disk
from tests.memory.database import MemoryDatabase, StoredRow
from tests.memory.event_log import decoded
from tests.memory.read_model import VIEWS, apply_changes


class LawBroken(AssertionError):
    """A law does not hold."""


class LogLaws:
    """Checks the log whenever something is recorded: all streams of the batches concerned."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._streams_of: dict[UUID, set[UUID]] = {}
        self._batch_of: dict[UUID, UUID] = {}
        self._events: dict[UUID, list[RecordedEvent]] = {}
        self._closed: set[UUID] = set()

    def check(self, rows: list[StoredRow]) -> None:
        """Check the batches that these new rows belong to. Raises InvariantViolated."""
        touched = set()
        for row in rows:
            recorded = decoded(row)
            self._events.setdefault(row.stream, []).append(recorded)
            batch = getattr(recorded.event, "batch", None) if row.version == 1 else None
            if row.version == 1:
                self._batch_of[row.stream] = batch or row.stream
                self._streams_of.setdefault(batch or row.stream, set()).add(row.stream)
            touched.add(self._batch_of[row.stream])
        for batch in touched:
            events = [
                recorded
                for stream in self._streams_of[batch]
                for recorded in self._events.get(stream, ())
            ]
            events.sort(key=lambda recorded: recorded.position)
            check_log(events)
        self._check_joins(rows)

    def _check_joins(self, rows: list[StoredRow]) -> None:
        """No upload joins a batch that an earlier append has closed."""
        for row in rows:
            if row.topic == "upload.registered":
                is_closed = self._batch_of[row.stream] in self._closed
                require(not is_closed, f"{row.stream} joined a closed batch at {row.position}")
        self._closed |= {row.stream for row in rows if row.topic in CLOSING}


def check_read_model(database: MemoryDatabase) -> None:
    """The rows are the fold of the log, event by event, up to their position."""
    position = database.positions.get(NAME, 0)
    expected: dict[str, dict[Any, Any]] = {name: {} for name in VIEWS}
    for row in database.rows:
        if row.position <= position:
            apply_changes(expected, fold_changes([decoded(row)]))
    for name, rows in expected.items():
        if database.read_model[name] != rows:
            found = database.read_model[name]
            different = [key for key in rows if found.get(key) != rows[key]]
            more = [key for key in found if key not in rows]
            raise LawBroken(
                f"{name} is not the fold of the log at {position}: {different or more}, "
                f"{[(found.get(key), rows.get(key)) for key in (different or more)[:1]]}"
            )


def check_end(database: MemoryDatabase, disk: Disk) -> FinalStates:
    """Everything has come to its end, and every table agrees with the log."""
    states = check_log([decoded(row) for row in database.rows])
    unfinished = {id: state for id, state in states.uploads.items() if state in UNFINISHED}
    require(not unfinished, f"unfinished uploads {unfinished}")
    open_batches = {id: state for id, state in states.batches.items() if state != "completed"}
    require(not open_batches, f"batches without an outcome {open_batches}")
    head = database.rows[-1].position if database.rows else 0
    for component in ("orchestrator", "read_model"):
        reached = database.positions.get(component, 0)
        require(reached == head, f"{component} is at {reached} of {head}")
    check_read_model(database)
    for batch, outcome in states.outcomes.items():
        counts = {UploadState(state): n for state, n in states.counts(batch).items()}
        if outcome not in ("cancelled", "expired"):
            require(outcome == outcome_of(counts, None), f"batch {batch}: {outcome} of {counts}")
        row: Any = database.read_model["batches"][batch]
        shown = {UploadState(state): n for state, n in row.counts.items()}
        require(shown == counts, f"batch {batch} shows {shown}, and has {counts}")
        require(row.state == "completed", f"batch {batch} is shown as {row.state}")
    for upload, state in states.uploads.items():
        shown_as = database.read_model["uploads"][upload]
        require(
            getattr(shown_as, "state", "") == state, f"upload {upload} is {state}, not {shown_as}"
        )
        member = database.members.get(upload)
        require(member is not None and member["state"] == state, f"tracked: {member}, {state}")
    running = {id: job for id, job in database.jobs.items() if job.status in ("todo", "doing")}
    require(not running, f"jobs are left: {running}")
    check_artifacts(database, disk)
    check_retries(database)
    return states


def check_artifacts(database: MemoryDatabase, disk: Disk) -> None:
    """What a successful attempt attached is stored."""
    for row in database.rows:
        event = decoded(row).event
        if isinstance(event, AttemptSucceeded):
            for blob in event.artifacts.values():
                require(blob in disk.blobs, f"artifact {blob} is not stored")


def check_webhooks(database: MemoryDatabase, accepted: list[tuple[str, str]]) -> None:
    """Each webhook was sent every event that it had chosen, those of a batch in their order.

    Written apart from the dispatcher: the log is read once, with each webhook, label and batch as
    they were at each position. `accepted` are the ids of the messages that the receiver accepted.
    """
    first: dict[str, int] = {}
    for place, (_, id) in enumerate(accepted):
        first.setdefault(id, place)
    hooks: dict[UUID, Webhook] = {}
    batch_of: dict[UUID, UUID] = {}
    started: dict[UUID, BatchStarted] = {}
    labels: dict[UUID, str] = {}
    expected: dict[tuple[UUID, UUID], list[int]] = {}
    for row in database.rows:
        recorded = decoded(row)
        event: Any = recorded.event
        if isinstance(event, WEBHOOK_EVENTS):
            known = hooks.get(row.stream)
            hooks[row.stream] = known.evolve(event) if known else Webhook.begin(row.stream, event)
            continue
        if row.version == 1:
            batch_of[row.stream] = getattr(event, "batch", row.stream)
        if isinstance(event, BatchStarted):
            started[row.stream], labels[row.stream] = event, event.label
        elif isinstance(event, BatchRenamed):
            labels[row.stream] = event.label
        batch = batch_of[row.stream]
        for hook in hooks.values():
            if hook.owner == started[batch].owner and hook.subscription.matches(
                row.topic, labels[batch], named=False
            ):
                expected.setdefault((hook.id, batch), []).append(row.position)
    for (hook_id, batch), positions in expected.items():
        if hooks[hook_id].removed:
            continue
        places = [first.get(f"msg_{hook_id.hex}_{position}") for position in positions]
        missing = [at for at, place in zip(positions, places, strict=True) if place is None]
        require(not missing, f"webhook {hook_id} was not sent {missing} of batch {batch}")
        in_order = places == sorted(place for place in places if place is not None)
        require(in_order, f"webhook {hook_id} was sent {positions} of batch {batch} as {places}")


def check_retries(database: MemoryDatabase) -> None:
    """Every upload that had failed when its batch was retried began again, unless it was ended."""
    states: dict[UUID, str] = {}
    batch_of: dict[UUID, UUID] = {}
    due: dict[UUID, tuple[UUID, int]] = {}  # uploads to begin again, by whom and since when
    for row in database.rows:
        event: Any = decoded(row).event
        if row.topic.startswith("upload."):
            if row.version == 1:
                batch_of[row.stream] = event.batch
            states[row.stream] = row.topic
            due.pop(row.stream, None)
        elif row.topic == "batch.retry_requested":
            due |= {
                upload: (row.stream, row.position)
                for upload, batch in batch_of.items()
                if batch == row.stream and states[upload] == "upload.failed"
            }
        elif row.topic in ("batch.cancelled", "batch.expired"):
            due = {upload: by for upload, by in due.items() if by[0] != row.stream}
    require(not due, f"failed uploads were not retried: {due}")


def describe(recorded: RecordedEvent) -> str:
    """Return one line about an event, for the story."""
    event: Any = recorded.event
    shown = {
        name: getattr(event, name)
        for name in ("path", "size", "done", "number", "worker", "reason", "outcome", "counts")
        if getattr(event, name, None) not in (None, "", ())
    }
    counts = shown.get("counts")
    if counts is not None:
        shown["counts"] = {str(state): n for state, n in counts.items()}
    place = f"{recorded.position} {str(recorded.stream)[-6:]}/{recorded.version}"
    return f"{place} {topic_of(event)} by {event.by} {shown or ''}".rstrip()


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise LawBroken(otherwise)
