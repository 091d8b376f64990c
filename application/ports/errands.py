"""Errands: steps that a user's own service performs, and what it says of them from outside."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

import msgspec
from msgspec import Meta

MAX_UNITS = 2**53  # the largest number that every JSON parser keeps exact

Units = Annotated[int, Meta(ge=0, le=MAX_UNITS)]


class Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of what a service says: unknown fields are refused, not lost in silence."""


class Reached(Form, frozen=True, kw_only=True):
    """How far the service is, in its own units."""

    done: Units
    total: Units | None = None

    def __post_init__(self) -> None:
        if self.total is not None and self.done > self.total:
            raise ValueError("`done` must not be more than `total`")


class Trouble(Form, frozen=True, kw_only=True):
    """Why there is no result: worth another attempt, never worth one, or a dangerous file."""

    message: Annotated[str, Meta(min_length=1, max_length=2000)]
    kind: Literal["retryable", "permanent", "quarantine"] = "retryable"


class Report(Form, frozen=True, kw_only=True, omit_defaults=True):
    """What a service says: exactly one of the three. A result or an error ends the errand."""

    progress: Reached | None = None
    result: dict[str, Any] | None = None
    error: Trouble | None = None

    def __post_init__(self) -> None:
        if sum(said is not None for said in (self.progress, self.result, self.error)) != 1:
            raise ValueError("exactly one of `progress`, `result` and `error` is needed")


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """An open errand: the attempt that waits for it, and what has been said."""

    id: UUID
    upload: UUID
    attempt: int
    reached: Reached | None = None
    answer: Report | None = None


class Tickets(msgspec.Struct, frozen=True, kw_only=True):
    """A new errand, and the two secrets its service gets: both are known to it alone."""

    id: UUID
    download: str
    callback: str


class Errands(Protocol):
    """Where the worker that waits and the process that hears the service meet.

    Every method raises Unavailable.
    """

    async def open(self, upload: UUID, attempt: int, *, download_within: float) -> Tickets:
        """A new errand; its bytes can be fetched once, within so many seconds."""

    async def get(self, id: UUID) -> Errand | None:
        """What has been said so far; None once it is closed."""

    async def close(self, id: UUID) -> None:
        """Nobody waits any more: whatever is said later finds no errand."""

    async def take_download(self, ticket: str) -> Errand | None:
        """The errand whose bytes may be sent now, once; None for a ticket that does not hold."""

    async def by_callback(self, ticket: str) -> Errand | None:
        """The errand that this ticket speaks for; None where there is none, or none any more."""

    async def say(self, id: UUID, report: Report) -> bool:
        """Records it, durably; False if the errand is closed, or was answered before."""
