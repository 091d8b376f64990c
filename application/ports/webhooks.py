"""Webhooks: where owners want to be told what happened, and how that fares."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias
from uuid import UUID

import msgspec

from application.ports.read_model import Page
from domain.webhook.aggregate import Webhook

# Deliveries: what waits to be told to a webhook, who tells it, and what came of it.

MAX_EXCERPT = 500  # characters of an answer that are kept


class DeliveryState(StrEnum):
    """`failed` is what was given up: it is told again only if somebody asks for it."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DeliveryAttempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, or what kept it from being sent; `duration` is in seconds.

    `status` is that of the answer, `excerpt` the beginning of its body.
    """

    at: datetime
    duration: float
    status: int | None = None
    error: str = ""
    excerpt: str = ""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a webhook is to be told of.

    Deliveries of one `lane` are told one after the other: a batch is a lane of each webhook, and
    tests have one of their own. `failures` are those since it was last asked for, `attempts` all.
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
        """What the receiver knows it by, however often it is sent."""
        return f"msg_{self.webhook.hex}_{self.position}"

    @property
    def is_test(self) -> bool:
        return self.lane == self.webhook


class LeasedDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery whose turn it is; whoever holds its `lease` makes it.

    `secrets` are the texts of the secrets in use, by their ids.
    """

    lease: UUID
    delivery: Delivery
    webhook: Webhook
    secrets: dict[UUID, str]

    def __repr__(self) -> str:
        return f"Due({self.delivery.id})"  # never a secret


class DeliverySucceeded(msgspec.Struct, frozen=True):
    """The receiver has it."""


class RetryAt(msgspec.Struct, frozen=True):
    """It is tried again then; the later ones of its lane wait."""

    at: datetime


class DeadLettered(msgspec.Struct, frozen=True):
    """It is not tried again by itself; the later ones go on."""


Verdict: TypeAlias = DeliverySucceeded | RetryAt | DeadLettered


class NextInLane(msgspec.Struct, frozen=True):
    """What follows a delivery: the next of its lane, if that may be made in the same turn.

    `failing_since` is the first failure since the last success, None after a success.
    """

    next: LeasedDelivery | None
    failing_since: datetime | None


class Outbox(Protocol):
    """Deliveries that wait. Any number of processes may make them; all methods raise Unavailable.

    A lease that is not used for long enough ends by itself: its delivery is then made again.
    """

    async def claim(self, most: int, *, at: datetime) -> Sequence[LeasedDelivery]:
        """Takes the turn of so many lanes at most; of one webhook only a few at a time."""

    async def settle(
        self,
        due: LeasedDelivery,
        tried: DeliveryAttempt,
        verdict: Verdict,
        *,
        at: datetime,
        go_on: bool,
    ) -> NextInLane | None:
        """Records what came of it, and gives back the lane unless the turn may `go_on`.

        None where the lease had ended: somebody else makes the delivery again.
        """

    async def give_back(self, dues: Sequence[LeasedDelivery], *, at: datetime) -> None:
        """Ends leases that were not used: somebody else may have the turn at once."""


class HttpReply(msgspec.Struct, frozen=True, kw_only=True):
    """What a receiver answered; `retry_after` is the header of that name, as it came."""

    status: int
    excerpt: str = ""
    retry_after: str | None = None


class DeliveryError(Exception):
    """No answer came: the receiver cannot be reached, is too slow, or must not be asked."""


class Sender(Protocol):
    """Sends signed requests."""

    async def send(
        self, url: str, secrets: Sequence[str], id: str, at: datetime, body: bytes
    ) -> HttpReply:
        """Raises Unsendable."""


class GeneratedSecret(msgspec.Struct, frozen=True):
    """A secret that was just made: its text is shown once."""

    id: UUID
    text: str

    def __repr__(self) -> str:
        return f"NewSecret({self.id})"


class WebhookHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How a webhook fares.

    `missed` counts the events that were not kept because too many were waiting already; the
    first of them came after position `missed_after`.
    """

    pending: int = 0
    failed: int = 0
    failing_since: datetime | None = None
    last_error: str = ""
    missed: int = 0
    missed_after: int | None = None


class Webhooks(Protocol):
    """The webhooks there are, and their deliveries. Every method raises Unavailable.

    What is listed is as of `position`, which follows the log.
    """

    async def make_secret(self, webhook: UUID) -> GeneratedSecret:
        """A secret that is kept, durably, before any event names it."""

    async def position(self) -> int:
        """The position up to which the log has been followed."""

    async def all(
        self, *, owner: str | None, cursor: str | None = None, limit: int = 50
    ) -> Page[Webhook]:
        """Those of an owner, or of all, newest first. Raises BadCursor."""

    async def count(self, owner: str) -> int:
        """How many an owner has."""

    async def named(self, owner: str, name: str) -> bool:
        """Whether the owner has a webhook of this id or address."""

    async def standings(self, ids: Sequence[UUID]) -> dict[UUID, WebhookHealth]:
        """How these fare; one of which nothing is known fares well."""

    async def deliveries(
        self,
        webhook: UUID,
        *,
        state: DeliveryState | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Sequence[Delivery]:
        """Newest first, those at positions below `before`."""

    async def delivery(self, webhook: UUID, position: int) -> Delivery:
        """Raises NotFound."""

    async def redeliver(self, webhook: UUID, position: int, *, at: datetime) -> Delivery:
        """It waits again, before the later ones of its lane. Raises NotFound."""

    async def redeliver_failed(self, webhook: UUID, since: datetime, *, at: datetime) -> int:
        """Likewise with all that were given up since then; how many those are."""
