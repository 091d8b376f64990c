"""Follows the log and queues what is to be told: each event once, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

import structlog

from application.append import RecordedEvent
from application.ports.event_log import Wakeups
from application.webhooks.following import (
    Roster,
    Telling,
    streams_of,
    telling_of,
    up_to_change,
)
from infrastructure.database_errors import LeadershipLost
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.reading import read_head, read_log
from infrastructure.postgres.locks import LEADER_TIMEOUTS, WEBHOOKS_LOCK, run_as_leader
from infrastructure.postgres.pool import Connection
from infrastructure.webhooks import queueing
from infrastructure.webhooks.origins import origins_of
from infrastructure.webhooks.rows import webhook_of

NAME = "webhooks"  # its row in notification_tracking

EVENTS = 1000  # a round
PACE = 0.1  # seconds between two rounds, in which events gather
KEPT_EVERY = 1.0  # seconds at most until a place is kept behind which nothing was to be told
POLL_INTERVAL = 0.5  # seconds between two attempts of a standby to become the leader

# Rows are found by their keys, also in tables that grew since they were analyzed. Commits do not
# wait for the disk: rows and position stand or fall together, and the log is there to read again.
_SESSION_SETTINGS = {
    **LEADER_TIMEOUTS,
    "enable_seqscan": "off",
    "synchronous_commit": "off",
    "lock_timeout": "10s",
}

_TRACKED = "SELECT notification_id FROM notification_tracking WHERE application_name = %s"
_REACHED = "UPDATE notification_tracking SET notification_id = %s WHERE application_name = %s"

_log = structlog.get_logger(__name__)


class Follower:
    """Keeps the webhooks' tables as the log says; one is active, others stand by.

    `bell` is rung when something was queued; `most` are the deliveries that may wait for one
    webhook: beyond, events are counted as missed.
    """

    def __init__(
        self,
        url: str,
        wakeups: Wakeups,
        bell: asyncio.Event,
        *,
        most: int,
        now: Callable[[], datetime],
        codec: Codec = CODEC,
    ) -> None:
        self._url = url
        self._codec = codec
        self._wakeups = wakeups
        self._bell = bell
        self._most = most
        self._now = now
        self._position = 0  # up to which the log was read
        self._kept = 0  # of that, what the database knows
        self._keep_at = 0.0
        self._roster = Roster()

    async def run(self) -> None:
        """Lead, and follow the log until cancelled: what an error interrupts is done again.

        Raises psycopg.Error, LeadershipLost.
        """
        await run_as_leader(
            self._url,
            WEBHOOKS_LOCK,
            self._lead,
            name="webhooks",
            settings=_SESSION_SETTINGS,
            poll_interval=POLL_INTERVAL,
        )

    async def _lead(self, connection: Connection) -> None:
        self._position = self._kept = await _tracked(connection)
        cursor = await connection.execute("SELECT webhook FROM webhooks.endpoints")
        self._roster = Roster([webhook_of(row[0]) async for row in cursor])
        while True:
            await self._round(connection)

    async def _round(self, connection: Connection) -> None:
        """The events up to the next change of a webhook, or as many as fit; then a rest."""
        head = await read_head(connection)
        found = await read_log(
            connection, self._position, EVENTS, self._roster.topics(), self._codec
        )
        events, change = up_to_change(found)
        if change is not None:
            through = change.position
        else:
            through = found[-1].position if len(found) == EVENTS else max(head, _last(found))
        if through > self._position:
            await self._take(connection, events, change, through)
        if change is None and len(found) < EVENTS:
            await asyncio.sleep(PACE)
            await self._wakeups.wait(self._position)

    async def _take(
        self,
        connection: Connection,
        events: Sequence[RecordedEvent],
        change: RecordedEvent | None,
        through: int,
    ) -> None:
        """One transaction: what these events lead to, and the place after them."""
        tellings = self._roster.tell(
            events, await origins_of(connection, streams_of(events), self._codec)
        )
        clock = asyncio.get_running_loop().time()
        if change is None and not tellings and clock < self._keep_at:
            self._position = through
            return
        at = self._now()
        async with connection.transaction():
            if await _tracked(connection, lock=True) != self._kept:
                raise LeadershipLost(f"the place is not {self._kept} any more")
            rest = await self._within_bounds(connection, tellings)
            if change is not None:
                rest += [asked] if (asked := telling_of(change)) else []
                await queueing.save(connection, self._roster.apply(change), change, at)
            await queueing.put(connection, rest, at)
            await connection.execute(_REACHED, (through, NAME))
        self._position = self._kept = through
        self._keep_at = clock + KEPT_EVERY
        if rest or change is not None:
            self._bell.set()

    async def _within_bounds(
        self, connection: Connection, tellings: list[Telling]
    ) -> list[Telling]:
        """Those for which there is room; the others are counted, and told of in the log file."""
        kept: list[Telling] = []
        rooms = {
            webhook: await queueing.room(connection, webhook, self._most)
            for webhook in {telling.webhook for telling in tellings}
        }
        missed: dict[UUID, list[int]] = {}
        for telling in tellings:
            if rooms[telling.webhook] > 0:
                rooms[telling.webhook] -= 1
                kept.append(telling)
            else:
                missed.setdefault(telling.webhook, []).append(telling.position)
        for webhook, positions in missed.items():
            await queueing.note_missed(connection, webhook, len(positions), positions[0] - 1)
            _log.error("webhook_events_missed", webhook=str(webhook), count=len(positions))
        return kept


async def _tracked(connection: Connection, *, lock: bool = False) -> int:
    cursor = await connection.execute(_TRACKED + (" FOR UPDATE" if lock else ""), (NAME,))
    row = await cursor.fetchone()
    if row is None:
        raise LookupError(f"no position is tracked for {NAME}: is the database migrated?")
    return int(row[0])


def _last(events: Sequence[RecordedEvent]) -> int:
    return events[-1].position if events else 0
