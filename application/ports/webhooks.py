"""Webhooks: where owners want to be told what happened, and how that fares."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from application.ports.deliveries import Delivery, DeliveryState
from application.ports.read_model import Page
from domain.webhook.aggregate import Webhook


class NewSecret(msgspec.Struct, frozen=True):
    """A secret that was just made: its text is shown once."""

    id: UUID
    text: str

    def __repr__(self) -> str:
        return f"NewSecret({self.id})"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
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

    async def make_secret(self, webhook: UUID) -> NewSecret:
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

    async def standings(self, ids: Sequence[UUID]) -> dict[UUID, Standing]:
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
