"""Who works, and on what: for people who look after the machines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec


class OpenAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that a worker holds; `step` and `percent` say how far it is recorded to be."""

    upload: UUID
    batch: UUID
    number: int
    started_at: datetime | None
    step: str | None
    percent: float | None


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process. `alive` is False after too long a silence, or where nobody knows it.

    `name` is that in the events of its attempts, None until it has an open one; `jobs` is
    how many jobs it has taken.
    """

    id: int | None
    name: str | None
    alive: bool
    last_heartbeat: datetime | None
    jobs: int
    attempts: list[OpenAttempt]


class Workers(Protocol):
    """The workers of all machines, as of now."""

    async def workers(self, *, owner: str | None) -> Sequence[WorkerView]:
        """All workers, with the open attempts of this owner (None: of everybody).

        Raises Unavailable.
        """


class NobodyWorks:
    """A server of which no worker is known."""

    async def workers(self, *, owner: str | None) -> Sequence[WorkerView]:
        return ()
