"""Rows of the webhooks' tables, and what they stand for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from application.ports.deliveries import Delivery, DeliveryState, Try
from domain.webhook.aggregate import Webhook
from infrastructure.postgres.pool import Connection, Pool, borrowed

DELIVERY = (
    "d.webhook, d.position, d.lane, d.stream, d.version, d.type, d.state, d.attempts,"
    " d.failures, d.queued_at, d.next_at, d.ended_at, d.last"
)


@asynccontextmanager
async def reached(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool. Raises Unavailable."""
    async with borrowed(pool) as connection:
        yield connection


def webhook_of(value: Any) -> Webhook:
    return msgspec.convert(value, Webhook)


def jsonb(value: msgspec.Struct | None) -> Jsonb | None:
    return None if value is None else Jsonb(msgspec.to_builtins(value))


def delivery_of(row: tuple[Any, ...]) -> Delivery:
    """The delivery in the columns DELIVERY; what follows them is passed over."""
    webhook, position, lane, stream, version, type, state, attempts, failures, *rest = row
    queued_at, next_at, ended_at, last, *_ = rest
    return Delivery(
        webhook=webhook,
        position=position,
        lane=lane,
        stream=stream,
        version=version,
        type=type,
        state=DeliveryState(state),
        attempts=attempts,
        failures=failures,
        queued_at=queued_at,
        next_at=next_at,
        ended_at=ended_at,
        last=None if last is None else msgspec.convert(last, Try),
    )
