"""Stream-by-stream comparison of derived rows with the folded aggregate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.orchestrator import ORCHESTRATOR
from application.tracked_batches import TrackedBatch, TrackedUpload
from domain.access.records import RecordedErasure, RecordedKey
from domain.batch.aggregate import Batch
from domain.batch.events import BATCH_EVENTS
from domain.errors import CommandRejected
from domain.event import UnknownEvent
from domain.ids import is_partial_upload
from domain.upload.aggregate import Upload
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WEBHOOK_EVENTS
from infrastructure.audit.verifier import Findings, difference
from infrastructure.event_store.event_log import (
    Aggregate,
    MixedStream,
    apply_event,
    decode_snapshot,
    encode_snapshot,
)
from infrastructure.jobs.tables import batch_row, upload_row
from infrastructure.webhooks.outbox import webhook_of

# Working state that follows from no event: of the orchestrator (what to count, when to expire) and
# of the job queue. The columns of the last count are compared one by one.
_UNCOMPARED = frozenset(
    {
        "job",
        "dirty",
        "active_at",
        "counts",
        "uploads",
        "bytes_received",
        "bytes_total",
        "progressed_at",
        "arrived_at",
    }
)


class Positions(msgspec.Struct, frozen=True):
    """Positions up to which each consumer has read the log; None if it has no tracked position."""

    orchestrator: int | None
    webhooks: int | None
    read_model: int | None


class Rows(msgspec.Struct, frozen=True):
    """Derived rows by stream; for webhooks the columns owner, enabled and webhook."""

    uploads: Mapping[UUID, TrackedUpload]
    batches: Mapping[UUID, TrackedBatch]
    webhooks: Mapping[UUID, tuple[Any, ...]]
    snapshots: Mapping[UUID, Mapping[int, tuple[str, bytes]]]


class _Extent:
    """Range in which a follower's position must be, from its rows: `low` <= position < `high`.

    Rows that do not match the tracked position are collected first: if all rows are consistent with
    each other, the position was moved and not the rows.
    """

    def __init__(self) -> None:
        self.low = 0
        self.high: int | None = None
        self.off: list[tuple[str, UUID, str]] = []

    def includes(self, position: int) -> None:
        self.low = max(self.low, position)

    def excludes(self, position: int) -> None:
        self.high = position if self.high is None else min(self.high, position)

    @property
    def agrees(self) -> bool:
        return self.high is None or self.low < self.high


class StreamCheck:
    """Comparison of derived rows with events, which are passed stream by stream."""

    def __init__(self, positions: Positions, findings: Findings) -> None:
        self.newest_row_event = 0  # up to the read model's position, of those that change a row
        self.access: list[Aggregate] = []  # keys, sign-ins and erasures, folded to their ends
        self.webhook_events: list[RecordedEvent] = []
        self.boxes: list[tuple[UUID, str]] = []  # keys of owners that events name, and the owner
        self._positions = positions
        self._findings = findings
        self._extent = _Extent()
        self._stream: _Stream | None = None

    def take(self, events: Iterable[tuple[RecordedEvent, UUID | None]], rows: Rows) -> None:
        """Take the next events, each with the id of the key that it is encrypted with."""
        for recorded, key in events:
            if self._stream is None or self._stream.id != recorded.stream:
                self._finish()
                self._stream = _Stream(recorded.stream, rows, self._positions, self._findings)
            self._stream.take(recorded)
            if isinstance(recorded.event, WEBHOOK_EVENTS):
                self.webhook_events.append(recorded)
            if key is not None and (owner := self._stream.owner) is not None:
                self.boxes.append((key, owner))

    def end(self) -> None:
        self._finish()
        extent, tracked = self._extent, self._positions.orchestrator
        if extent.off and extent.agrees:
            end = "" if extent.high is None else f", before position {extent.high}"
            at = "has no position" if tracked is None else f"is at position {tracked}"
            self._findings.add(
                "tracking_moved",
                "notification_tracking",
                "orchestrator",
                f"{at}, but its rows are of position {extent.low} or later{end}",
            )
            return
        for table, key, detail in extent.off:
            self._findings.add("orchestration_altered", table, key, detail)

    def _finish(self) -> None:
        if self._stream is not None:
            self._stream.finish(self._extent)
            newest = self._stream.newest_row_event
            self.newest_row_event = max(self.newest_row_event, newest)
            self.access += self._stream.access


class _Stream:
    """One stream, as far as its events were read."""

    def __init__(self, id: UUID, rows: Rows, positions: Positions, findings: Findings) -> None:
        self.id = id
        self.newest_row_event = 0
        self._positions = positions
        self._findings = findings
        self._upload = rows.uploads.get(id)
        self._batch = rows.batches.get(id)
        self._endpoint = rows.webhooks.get(id)
        self._snapshots = dict(rows.snapshots.get(id, {}))
        self._row = self._upload or self._batch
        self._aggregate: Aggregate | None = None
        self._tracked: TrackedBatch | None = None
        self._expected: TrackedUpload | TrackedBatch | None = None  # the row, at its own version
        self._webhook: Webhook | None = None  # as of the position of the webhooks' follower
        self._at_position = 0  # the version at the orchestrator's position
        self._foreign = 0  # position of the last event in the row that others recorded
        self._foreign_ahead = False
        self._next: int | None = None  # position of the first event that is not in the row
        self._is_skipped = False  # broken, or has events of unknown types

    def take(self, recorded: RecordedEvent) -> None:
        if self._is_skipped or isinstance(recorded.event, UnknownEvent):
            # Rows that a later version derived from such an event cannot be judged by this one.
            self._is_skipped = True
            return
        try:
            self._fold(recorded)
        except (CommandRejected, MixedStream) as error:
            self._is_skipped = True
            detail = f"position {recorded.position} does not follow: {error}"
            self._findings.add("stream_broken", "stored_events", self.id, detail)
            return
        self._compare_snapshot(recorded.version)
        self._note_position(recorded)

    @property
    def owner(self) -> str | None:
        return getattr(self._aggregate, "owner", None)

    @property
    def access(self) -> list[Aggregate]:
        known = self._aggregate
        return [known] if isinstance(known, RecordedKey | RecordedErasure) else []

    def finish(self, extent: _Extent) -> None:
        if self._is_skipped:
            return
        for version in self._snapshots:
            detail = f"the stream has no version {version}"
            self._findings.add("snapshot_altered", "stored_snapshots", self.id, detail)
        self._finish_row(extent)
        self._finish_webhook()

    def _fold(self, recorded: RecordedEvent) -> None:
        event = recorded.event
        self._aggregate = apply_event(self.id, self._aggregate, event)
        if isinstance(event, BATCH_EVENTS):
            known = self._tracked
            self._tracked = known.evolve(event) if known else TrackedBatch.begin(self.id, event)

    def _compare_snapshot(self, version: int) -> None:
        kept = self._snapshots.pop(version, None)
        if kept is None:
            return
        assert self._aggregate is not None
        topic, state = kept
        try:
            snapshot = decode_snapshot(state)
        except (msgspec.MsgspecError, ValueError) as error:
            detail = f"version {version} cannot be read: {error}"
            self._findings.add("snapshot_altered", "stored_snapshots", self.id, detail)
            return
        if snapshot == self._aggregate and topic == encode_snapshot(self._aggregate)[0]:
            return
        names = ", ".join(_differing(snapshot, self._aggregate)) or "topic"
        detail = f"version {version} differs from the log: {names}"
        self._findings.add("snapshot_altered", "stored_snapshots", self.id, detail)

    def _note_position(self, recorded: RecordedEvent) -> None:
        aggregate, position = self._aggregate, recorded.position
        if isinstance(aggregate, Webhook):
            if position <= (self._positions.webhooks or 0):
                self._webhook = aggregate
            return
        if not self._followed_by_orchestrator:
            return
        if position <= (self._positions.read_model or 0):
            self.newest_row_event = position
        tracked = self._positions.orchestrator or 0
        if position <= tracked:
            self._at_position = recorded.version
        version = _version_of(self._row)
        if recorded.version > version:
            self._next = self._next or position
            return
        if recorded.event.by != ORCHESTRATOR:
            self._foreign = position
            self._foreign_ahead |= position > tracked
        if recorded.version == version:
            self._expected = self._expected_row(recorded)

    @property
    def _followed_by_orchestrator(self) -> bool:
        return isinstance(self._aggregate, Upload | Batch) and not is_partial_upload(self.id)

    def _expected_row(self, recorded: RecordedEvent) -> TrackedUpload | TrackedBatch | None:
        if isinstance(self._aggregate, Upload):
            return TrackedUpload.after(recorded.event, self._aggregate)
        return self._tracked

    def _finish_row(self, extent: _Extent) -> None:
        table = "orchestration.members"
        if not isinstance(self._aggregate, Upload):
            table = "orchestration.batches"
        self._report_misplaced()
        if not self._followed_by_orchestrator:
            return
        row = self._row
        version = _version_of(row)
        extent.includes(self._foreign)
        if self._next is not None:
            extent.excludes(self._next)
        if version < self._at_position:
            at = f"is at version {version}" if row else "is missing"
            detail = f"{at}, the log at the orchestrator's position has version {self._at_position}"
            extent.off.append((table, self.id, detail))
        elif row is not None and self._foreign_ahead:
            detail = f"is at version {version}, which the orchestrator has not read yet"
            extent.off.append((table, self.id, detail))
        if row is None:
            return
        if self._expected is None:
            detail = f"is at version {version}, which the stream does not have"
            self._findings.add("orchestration_altered", table, self.id, detail)
        elif differing := list(self._differing_columns(row, self._expected)):
            detail = "differs from the log: " + ", ".join(differing)
            self._findings.add("orchestration_altered", table, self.id, detail)

    def _report_misplaced(self) -> None:
        """Report a row in the table of another kind of stream."""
        wrong: dict[str, bool] = {
            "orchestration.members": self._upload is not None
            and not (isinstance(self._aggregate, Upload) and not is_partial_upload(self.id)),
            "orchestration.batches": self._batch is not None
            and not isinstance(self._aggregate, Batch),
        }
        for table, is_wrong in wrong.items():
            if is_wrong:
                detail = "the stream is of another kind"
                self._findings.add("orchestration_altered", table, self.id, detail)

    def _differing_columns(
        self, row: TrackedUpload | TrackedBatch, expected: TrackedUpload | TrackedBatch
    ) -> Iterator[str]:
        found, known = _columns(row), _columns(expected)
        for name in found:
            if name in _UNCOMPARED or found[name] == known[name]:
                continue
            if name == "reason" and self._is_erased_reason(found[name]):
                continue
            yield difference(name, found[name], known[name])
        if isinstance(row, TrackedBatch) and isinstance(expected, TrackedBatch):
            yield from _differing_progress(row.batch, expected.batch)

    def _is_erased_reason(self, reason: str) -> bool:
        return isinstance(self._aggregate, Batch) and self._aggregate.erased and reason == ""

    def _finish_webhook(self) -> None:
        endpoint, expected = self._endpoint, self._webhook
        if endpoint is None:
            if expected is not None and not expected.removed:
                detail = "is missing: it was added and not removed"
                self._findings.add("webhook_altered", "webhooks.endpoints", self.id, detail)
            return
        if expected is None or expected.removed:
            detail = "the log at the position of the webhooks has no such webhook"
            self._findings.add("webhook_altered", "webhooks.endpoints", self.id, detail)
            return
        owner, enabled, value = endpoint
        try:
            webhook = webhook_of(value)
        except msgspec.ValidationError as error:
            self._findings.add(
                "webhook_altered", "webhooks.endpoints", self.id, f"cannot be read: {error}"
            )
            return
        differing = list(_differing(webhook, expected))
        differing += [] if owner == expected.owner else ["owner (column)"]
        differing += [] if enabled == expected.enabled else ["enabled (column)"]
        if differing:
            detail = "differs from the log: " + ", ".join(differing)
            self._findings.add("webhook_altered", "webhooks.endpoints", self.id, detail)


def _differing(found: Any, expected: Any) -> Iterator[str]:
    if type(found) is not type(expected):
        yield "kind"
        return
    for name in found.__struct_fields__:
        if getattr(found, name) != getattr(expected, name):
            yield difference(name, getattr(found, name), getattr(expected, name))


def _columns(row: TrackedUpload | TrackedBatch) -> Mapping[str, Any]:
    return upload_row(row) if isinstance(row, TrackedUpload) else batch_row(row)


def _version_of(row: TrackedUpload | TrackedBatch | None) -> int:
    if row is None:
        return 0
    return row.upload.version if isinstance(row, TrackedUpload) else row.batch.version


def _differing_progress(row: Batch, expected: Batch) -> Iterator[str]:
    """Return the differing columns of the last count: states, bytes and time."""
    for name in ("at", "counts", "bytes_received", "bytes_total", "arrived_at"):
        found, known = getattr(row.progress, name, None), getattr(expected.progress, name, None)
        if found != known:
            yield difference(f"progress.{name}", found, known)
