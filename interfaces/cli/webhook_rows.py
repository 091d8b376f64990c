"""Webhooks and deliveries as the API tells them, and how they are told to people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

import msgspec

from interfaces.cli import output


class Webhook(msgspec.Struct, frozen=True):
    """A webhook, and how it fares."""

    id: UUID
    owner: str
    url: str
    events: list[str]
    label: str | None = None
    on_request: bool = False
    description: str = ""
    enabled: bool = True
    reason: str = ""
    added_at: datetime | None = None
    added_by: str = ""
    changed_at: datetime | None = None
    changed_by: str = ""
    earlier_secrets_until: datetime | None = None
    pending: int = 0
    failed: int = 0
    failing_since: datetime | None = None
    last_error: str = ""
    missed: int = 0
    missed_after: int | None = None


class Secret(msgspec.Struct, frozen=True):
    """A webhook and the secret that was just made for it."""

    webhook: Webhook
    secret: str


class TestRequested(msgspec.Struct, frozen=True):
    """A test that is under way."""

    position: int


class Try(msgspec.Struct, frozen=True):
    """A request and its answer; `duration` is in seconds."""

    at: datetime
    duration: float
    status: int | None = None
    error: str = ""
    excerpt: str = ""


class Delivery(msgspec.Struct, frozen=True):
    """What became of one event."""

    id: str
    position: int
    type: str
    state: str
    attempts: int
    queued_at: datetime
    batch: UUID | None = None
    next_at: datetime | None = None
    ended_at: datetime | None = None
    last: Try | None = None


class Redelivered(msgspec.Struct, frozen=True):
    """How many deliveries are made again."""

    deliveries: int


def standing(webhook: Webhook) -> str:
    """How it fares, in a few words."""
    if not webhook.enabled:
        return f"disabled: {webhook.reason}"
    if webhook.failing_since is not None:
        return f"failing since {output.moment(webhook.failing_since)}"
    return "enabled"


def card(webhook: Webhook) -> Iterator[str]:
    """One webhook, line by line."""
    limits = [f"label {webhook.label}"] if webhook.label is not None else []
    limits += ["on request"] if webhook.on_request else []
    yield f"{webhook.id}  {webhook.url}"
    yield f"  {standing(webhook)}; {webhook.pending} pending, {webhook.failed} given up"
    yield f"  events: {', '.join(webhook.events)}{''.join(f'; {one}' for one in limits)}"
    if webhook.description:
        yield f"  {webhook.description}"
    if webhook.last_error:
        yield f"  last error: {webhook.last_error}"
    if webhook.missed:
        yield f"  {webhook.missed} events were missed, after position {webhook.missed_after}"
    if webhook.earlier_secrets_until:
        yield f"  earlier secrets sign until {output.moment(webhook.earlier_secrets_until)}"
    yield f"  added {output.moment(webhook.added_at)} by {webhook.added_by}"
    yield f"  changed {output.moment(webhook.changed_at)} by {webhook.changed_by}"


def sentence(delivery: Delivery) -> str:
    """What came of a delivery, and what is next."""
    last = delivery.last
    if last is None:
        return f"{delivery.type}: {delivery.state}, not sent yet"
    answer = f"answered {last.status}" if last.status and not last.error else last.error
    told = f"{delivery.type}: {delivery.state}, {answer} after {1000 * last.duration:.0f} ms"
    if delivery.next_at is not None:
        told += f"; again at {output.moment(delivery.next_at)}"
    return f"{told}: {last.excerpt.strip()}" if last.excerpt.strip() else told
