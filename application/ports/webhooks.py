"""Ports of webhooks: the outbox of deliveries, the sender, and the registry."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias
from uuid import UUID

import msgspec
from msgspec.structs import replace

from application.append import RecordedEvent
from application.ports.read_model import Page
from domain.webhook.aggregate import Webhook

MAX_EXCERPT = 500  # characters of a response


class DeliveryState(StrEnum):
    """State of a delivery. `failed` is final: it is redelivered only on request."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DeliveryAttempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, or the error that prevented it; `duration` is in seconds.

    `status` is the HTTP status of the response, `excerpt` the beginning of its body.
    """

    at: datetime
    duration: float
    status: int | None = None
    error: str = ""
    excerpt: str = ""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """Delivery of one event to one webhook.

    Deliveries of one `lane` are sent in order: each batch is a lane of each webhook, and test
    deliveries have a lane of their own. `failures` counts since the last redelivery.
    """

    webhook: UUID
    position: int
    lane: UUID
    stream: UUID
    version: int
    type: str
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    failures: int = 0
    queued_at: datetime
    next_at: datetime | None = None
    ended_at: datetime | None = None
    last: DeliveryAttempt | None = None

    @property
    def id(self) -> str:
        """Message id for the receiver, the same in every attempt."""
        return f"msg_{self.webhook.hex}_{self.position}"

    @property
    def is_test(self) -> bool:
        return self.lane == self.webhook


class LeasedDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """Delivery that is leased to this process for one attempt.

    `secrets` are the texts of the secrets in use, by their ids.
    """

    lease: UUID
    delivery: Delivery
    webhook: Webhook
    secrets: dict[UUID, str]

    def __repr__(self) -> str:
        return f"LeasedDelivery({self.delivery.id})"  # never a secret


class DeliverySucceeded(msgspec.Struct, frozen=True):
    """The receiver accepted the delivery."""


class RetryScheduled(msgspec.Struct, frozen=True):
    """The delivery is retried at this time; later ones of its lane wait."""

    at: datetime


class DeadLettered(msgspec.Struct, frozen=True):
    """The delivery is not retried automatically; later ones of its lane continue."""


Verdict: TypeAlias = DeliverySucceeded | RetryScheduled | DeadLettered


class NextInLane(msgspec.Struct, frozen=True):
    """Next delivery of the lane, if the lane may continue.

    `failing_since` is the first failure since the last success, None after a success.
    """

    next: LeasedDelivery | None
    failing_since: datetime | None


class Outbox(Protocol):
    """Outbox of pending deliveries for any number of processes. All methods raise Unavailable.

    A lease expires: its delivery is then attempted again.
    """

    async def claim(self, most: int, *, at: datetime) -> Sequence[LeasedDelivery]:
        """Lease the first delivery of up to `most` lanes, only a few per webhook."""

    async def complete(
        self,
        due: LeasedDelivery,
        tried: DeliveryAttempt,
        verdict: Verdict,
        *,
        at: datetime,
        keep_lane: bool,
    ) -> NextInLane | None:
        """Record the attempt, and release the lane unless `keep_lane`.

        Returns None if the lease had expired: another process attempts the delivery again.
        """

    async def delete_expired(self, before: datetime) -> int:
        """Delete deliveries that ended before this moment, and unused secrets; return how many."""

    async def release_leases(self, dues: Sequence[LeasedDelivery], *, at: datetime) -> None:
        """Release unused leases, so that another process may lease them at once."""


class StreamBatch(msgspec.Struct, frozen=True):
    """The batch that a stream belongs to; `notify` names the webhooks it asks for, if any.

    `label` is that of its start; `renames` has later ones with their positions, in log order.
    """

    batch: UUID
    owner: str
    label: str
    notify: str | None
    renames: tuple[tuple[int, str], ...] = ()

    def with_rename(self, position: int, label: str) -> StreamBatch:
        """Return the batch with one more label, set at this position."""
        return replace(self, renames=(*self.renames, (position, label)))

    def label_at(self, position: int) -> str:
        """Return the label as of this position; a rename has the new label already."""
        label = self.label
        for renamed_at, new_label in self.renames:
            if renamed_at > position:
                break
            label = new_label
        return label


class PlannedDelivery(msgspec.Struct, frozen=True):
    """Delivery of an event to one webhook, in its lane."""

    webhook: UUID
    position: int
    lane: UUID
    stream: UUID
    version: int
    type: str


class DispatchTransaction(Protocol):
    """Open transaction of the dispatcher: deliveries planned from events, and its position."""

    async def queue_capacity(self, webhook: UUID, most: int) -> int:
        """Return how many more deliveries may wait for this webhook, of `most` in all."""

    async def count_missed(self, webhook: UUID, count: int, after: int) -> None:
        """Count events that were not queued, the first of them after position `after`."""

    async def save_webhook(self, webhook: Webhook, change: RecordedEvent, at: datetime) -> None:
        """Save the webhook after this change; delete everything of one that was removed.

        Deliveries of a webhook that was enabled or changed are attempted at once.
        """

    async def insert_deliveries(self, planned: Sequence[PlannedDelivery], at: datetime) -> None:
        """Queue deliveries, each at the end of its lane."""


class DispatcherStore(Protocol):
    """The log and the webhook tables of the dispatcher, in the session of the leader.

    Every method raises what a lost session raises.
    """

    async def position(self) -> int:
        """Return the position up to which deliveries were queued."""

    async def webhooks(self) -> Sequence[Webhook]:
        """Return all webhooks as of that position, without removed ones."""

    async def head(self) -> int:
        """Return the position of the last event."""

    async def read(
        self, after: int, *, limit: int, topics: Sequence[str]
    ) -> Sequence[RecordedEvent]:
        """Return events of these topics beyond position `after`, in order; at most `limit`."""

    async def batches_of(
        self, streams: Collection[UUID], *, with_renames: bool
    ) -> Mapping[UUID, StreamBatch]:
        """Return the batch of each stream; with its later labels too, which is slower."""

    def begin(
        self, position: int, through: int
    ) -> AbstractAsyncContextManager[DispatchTransaction]:
        """Begin a transaction that moves the position from `position` to `through`.

        It commits at the end of the context, unless that raises. Raises LeadershipLost if the saved
        position is another one.
        """


class HttpReply(msgspec.Struct, frozen=True, kw_only=True):
    """Response of a receiver; `retry_after` is the header of that name, unparsed."""

    status: int
    excerpt: str = ""
    retry_after: str | None = None


class DeliveryError(Exception):
    """No response: the receiver is unreachable, too slow, or at a forbidden address."""


class Sender(Protocol):
    """Sends signed requests."""

    async def send(
        self, url: str, secrets: Sequence[str], id: str, at: datetime, body: bytes
    ) -> HttpReply:
        """Send one request. Raises DeliveryError."""


class GeneratedSecret(msgspec.Struct, frozen=True):
    """New signing secret; its text is shown once."""

    id: UUID
    text: str

    def __repr__(self) -> str:
        return f"GeneratedSecret({self.id})"


class WebhookHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Health of a webhook.

    `missed` counts the events that were dropped because too many deliveries were pending; the
    first of them came after position `missed_after`.
    """

    pending: int = 0
    failed: int = 0
    failing_since: datetime | None = None
    last_error: str = ""
    missed: int = 0
    missed_after: int | None = None


class Webhooks(Protocol):
    """Registry of webhooks and their deliveries. Every method raises Unavailable.

    Lists reflect the log up to `position`.
    """

    async def make_secret(self, webhook: UUID) -> GeneratedSecret:
        """Create a secret and store it durably, before any event refers to it."""

    async def position(self) -> int:
        """Return the log position that the registry reflects."""

    async def all(
        self, *, owner: str | None, cursor: str | None = None, limit: int = 50
    ) -> Page[Webhook]:
        """Return the webhooks of an owner, or of all, newest first. Raises BadCursor."""

    async def count(self, owner: str) -> int:
        """Return the number of webhooks of an owner."""

    async def named(self, owner: str, name: str) -> bool:
        """Return whether the owner has a webhook of this id or address."""

    async def load_health(self, ids: Sequence[UUID]) -> dict[UUID, WebhookHealth]:
        """Return the health of these webhooks; one without deliveries is healthy."""

    async def deliveries(
        self,
        webhook: UUID,
        *,
        state: DeliveryState | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Sequence[Delivery]:
        """Return deliveries newest first, at positions below `before`."""

    async def delivery(self, webhook: UUID, position: int) -> Delivery:
        """Raises NotFound."""

    async def redeliver(self, webhook: UUID, position: int, *, at: datetime) -> Delivery:
        """Queue the delivery again, before later ones of its lane. Raises NotFound."""

    async def redeliver_failed(self, webhook: UUID, since: datetime, *, at: datetime) -> int:
        """Queue all deliveries that failed since then again; return their number."""
