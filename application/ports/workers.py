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
    """A worker of the queue. `alive` is False after too long a silence, or where nobody knows it.

    `name` is that in the events of its attempts, None while neither an attempt nor a process
    tells it; `jobs` is how many jobs it has taken.
    """

    id: int | None
    name: str | None
    alive: bool
    last_heartbeat: datetime | None
    jobs: int
    attempts: list[OpenAttempt]


class ProcessView(msgspec.Struct, frozen=True, kw_only=True):
    """A server process of any role, on any machine. `alive` is False after too long a silence.

    `leads` says whether it is the active orchestrator; `worker` is the id of its worker.
    """

    id: UUID
    machine: str
    pid: int
    roles: list[str]
    version: str
    started_at: datetime
    last_heartbeat: datetime
    alive: bool
    leads: bool
    worker: int | None


class Workers(Protocol):
    """The workers of all machines, as of now."""

    async def workers(self, *, owner: str | None) -> Sequence[WorkerView]:
        """All workers, with the open attempts of this owner (None: of everybody).

        Raises Unavailable.
        """

    async def processes(self) -> Sequence[ProcessView]:
        """All server processes that said they are there and did not say they ended.

        Those that fell silent are kept for an hour. Raises Unavailable.
        """
