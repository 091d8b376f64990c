"""Deletes what need not be kept any longer: deliveries that were made, secrets that do not sign."""

from __future__ import annotations

from datetime import datetime

import structlog

from infrastructure.postgres.pool import Pool
from infrastructure.webhooks.rows import reached

CHUNK = 5_000  # rows deleted at once

_OLD = f"""DELETE FROM webhooks.deliveries WHERE (webhook, position) IN (
  SELECT webhook, position FROM webhooks.deliveries
  WHERE state <> 'pending' AND ended_at < %s LIMIT {CHUNK})"""  # noqa: S608

# One that no webhook names was made for a command that did not come to its end; a day is ample.
_UNUSED = """DELETE FROM webhooks.secrets s WHERE made_at < now() - interval '1 day'
AND NOT EXISTS (
  SELECT FROM webhooks.endpoints e, jsonb_array_elements(e.webhook -> 'secrets') used
  WHERE e.id = s.webhook AND used ->> 'id' = s.id::text
  AND (used ->> 'until' IS NULL OR (used ->> 'until')::timestamptz > now()))"""

_log = structlog.get_logger(__name__)


async def sweep(pool: Pool, before: datetime) -> int:
    """Deliveries that ended before this moment go; how many those were. Raises Unavailable."""
    count = 0
    async with reached(pool) as connection:
        while (deleted := (await connection.execute(_OLD, (before,))).rowcount) > 0:
            count += deleted
            if deleted < CHUNK:
                break
        await connection.execute(_UNUSED)
    if count:
        _log.info("deliveries_forgotten", count=count)
    return count
