"""Who may write what: each append of a group gets its verdict, and its rows their versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

import msgspec

from application.append import Append, AppendCondition
from application.errors import AlreadyHandled, ApplicationError, Conflict, IdempotencyKeyReused
from infrastructure.event_store.codec import CODEC, Codec


class Row(NamedTuple):
    """One row of `stored_events`, but for the position that the database gives it."""

    stream: UUID
    version: int
    topic: str
    state: bytes


class Encoded(msgspec.Struct, frozen=True):
    """An append whose events are bytes already; one tuple of topics and states a write.

    `size` is how many events it holds.
    """

    append: Append
    contents: tuple[tuple[tuple[str, bytes], ...], ...]
    size: int

    @property
    def streams(self) -> Iterator[UUID]:
        """The streams it writes or guards; some more than once."""
        for write in self.append.writes:
            yield write.stream
        for condition in self.append.conditions:
            yield condition.stream


class Placed(msgspec.Struct, frozen=True):
    """An append that may be recorded: its rows, and the versions its streams will have."""

    encoded: Encoded
    rows: list[Row]
    versions: dict[UUID, int]


def encode(append: Append, codec: Codec = CODEC) -> Encoded:
    """The append, with its events as bytes."""
    contents = tuple(
        tuple(codec.encode(event, append.cause, write.owner) for event in write.events)
        for write in append.writes
    )
    return Encoded(append, contents, sum(map(len, contents)))


class Ledger(msgspec.Struct):
    """What the log holds of the streams a group touches, moved on by each append placed.

    `versions` has every such stream (0: it does not exist), `topics` what was recorded in
    guarded streams lately as version and topic, `answers` fingerprint, body and position by command
    (None: it is part of this group).
    """

    versions: dict[UUID, int]
    topics: dict[UUID, list[tuple[int, str]]]
    answers: dict[UUID, tuple[str, bytes, int | None]]

    def place(self, encoded: Encoded) -> Placed | ApplicationError:
        """The verdict on one append; a refused one leaves the ledger as it was."""
        refusal = self._repeated(encoded.append) or self._guarded(encoded.append)
        if refusal is not None:
            return refusal
        placed = self._number(encoded)
        if isinstance(placed, Placed):
            self._take(placed)
        return placed

    def _repeated(self, append: Append) -> ApplicationError | None:
        if append.idempotency is None:
            return None
        known = self.answers.get(append.idempotency.command_id)
        if known is None:
            return None
        fingerprint, body, position = known
        if fingerprint != append.idempotency.fingerprint:
            return IdempotencyKeyReused("the command id was used before for another request")
        return AlreadyHandled(body, position)

    def _guarded(self, append: Append) -> Conflict | None:
        for condition in append.conditions:
            if self._violates(condition):
                return Conflict(condition.stream, condition.after, self.versions[condition.stream])
        return None

    def _violates(self, condition: AppendCondition) -> bool:
        return any(
            version > condition.after and topic in condition.topics
            for version, topic in self.topics.get(condition.stream, ())
        )

    def _number(self, encoded: Encoded) -> Placed | Conflict:
        rows: list[Row] = []
        versions: dict[UUID, int] = {}
        for write, content in zip(encoded.append.writes, encoded.contents, strict=True):
            current = versions.get(write.stream, self.versions[write.stream])
            if write.expected_version is not None and write.expected_version != current:
                return Conflict(write.stream, write.expected_version, current)
            for topic, state in content:
                current += 1
                rows.append(Row(write.stream, current, topic, state))
            versions[write.stream] = current
        return Placed(encoded, rows, versions)

    def _take(self, placed: Placed) -> None:
        self.versions.update(placed.versions)
        for row in placed.rows:
            if row.stream in self.topics:
                self.topics[row.stream].append((row.version, row.topic))
        if answer := placed.encoded.append.idempotency:
            self.answers[answer.command_id] = (answer.fingerprint, answer.body, None)
