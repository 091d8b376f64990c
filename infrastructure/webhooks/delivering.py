"""Runs the deliverer: a bounded number of turns at once, beside those of other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from application.errors import Unavailable
from application.ports.deliveries import Due, Outbox
from application.webhooks.delivering import Deliverer
from infrastructure.postgres.pool import Pool
from infrastructure.tasks import end
from infrastructure.webhooks.sweeping import sweep

SLOTS = 32  # turns at once in one process
LOOK = 0.5  # seconds between two looks at what is due, unless the bell is rung
SOON = 2.0  # seconds within which a retry is waited for to the moment
SWEEP = 600.0  # seconds between two looks at what need not be kept any longer
PAUSE = 1.0  # seconds before another try where the database cannot be reached

_log = structlog.get_logger(__name__)


class Deliveries:
    """Makes deliveries for ever. What was made is kept for `retention` seconds."""

    def __init__(
        self,
        outbox: Outbox,
        deliverer: Deliverer,
        pool: Pool,
        bell: asyncio.Event,
        *,
        retention: float,
        now: Callable[[], datetime],
    ) -> None:
        self._outbox = outbox
        self._deliverer = deliverer
        self._pool = pool
        self._bell = bell
        self._retention = timedelta(seconds=retention)
        self._now = now
        self._turns: dict[asyncio.Task[None], Due] = {}
        self._sweep_at = 0.0

    async def run(self) -> None:
        """Until cancelled: turns that are under way are then given back, to be made by others."""
        try:
            while True:
                try:
                    await self._round()
                except Unavailable as error:
                    _log.warning("deliveries_interrupted", error=str(error), retry_in=PAUSE)
                    await asyncio.sleep(PAUSE)
        finally:
            await self._stop()

    async def _round(self) -> None:
        self._bell.clear()
        free = SLOTS - len(self._turns)
        dues = await self._outbox.claim(free, at=self._now()) if free else ()
        for due in dues:
            turn = asyncio.create_task(self._take(due), name=f"delivery {due.delivery.id}")
            self._turns[turn] = due
            turn.add_done_callback(self._over)
        loop = asyncio.get_running_loop()
        if loop.time() >= self._sweep_at:
            await sweep(self._pool, self._now() - self._retention)
            self._sweep_at = loop.time() + SWEEP
        if not dues or len(self._turns) == SLOTS:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._bell.wait()

    async def _take(self, due: Due) -> None:
        """A turn that breaks off leaves its lease: when that ends, the delivery is made again."""
        try:
            again = await self._deliverer.take_turn(due)
            if again is not None and (left := (again - self._now()).total_seconds()) < SOON:
                # Looking for what is due every LOOK seconds would be late by half of that.
                asyncio.get_running_loop().call_later(max(0.0, left), self._bell.set)
        except Unavailable as error:
            _log.warning("delivery_interrupted", delivery=due.delivery.id, error=str(error))
        except Exception:
            _log.exception("delivery_broke_off", delivery=due.delivery.id)

    def _over(self, turn: asyncio.Task[None]) -> None:
        self._turns.pop(turn, None)
        self._bell.set()

    async def _stop(self) -> None:
        under_way = dict(self._turns)
        await end(*under_way)
        try:
            await self._outbox.give_back(list(under_way.values()), at=self._now())
        except Unavailable as error:
            _log.warning("deliveries_not_given_back", count=len(under_way), error=str(error))
