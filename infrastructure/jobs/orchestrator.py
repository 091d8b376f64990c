"""The orchestrator: follows the log, round after round, while it leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import psycopg
import structlog
from procrastinate.exceptions import ConnectorException

from application.errors import Unavailable
from application.orchestrator.suspecting import Suspects
from application.ports.event_log import EventLog, Wakeups
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.jobs.leadership import Deposed, take_the_lead
from infrastructure.jobs.queue import Dispatch
from infrastructure.jobs.round import Done, run_round
from infrastructure.postgres.pool import Connection, connect
from infrastructure.settings import Settings

EVENTS = 1000  # a round
CHECK = 1.0  # seconds between two looks for dead workers and lost uploads
PACE = 0.05  # seconds between two rounds, in which events gather; longer after a long round
LONGEST_PACE = 0.2
LONGEST_BACKOFF = 5.0  # seconds

_LOST = (psycopg.Error, OSError, ConnectorException, Unavailable, Deposed)

_log = structlog.get_logger(__name__)


class Orchestrator:
    """Moves every batch and upload on, exactly once for each event; one is active at a time.

    Whatever number of processes run one, the others stand by, and take over within about a
    second when the session of the active one ends. `now` gives the time, in UTC.
    """

    def __init__(
        self,
        url: str,
        log: EventLog,
        wakeups: Wakeups,
        settings: Settings,
        now: Callable[[], datetime],
        codec: Codec = CODEC,
    ) -> None:
        self._url = url
        self._codec = codec
        self._reader = log
        self._wakeups = wakeups
        self._settings = settings
        self._now = now
        self._dispatch = Dispatch()
        self._position = 0
        self._leading = False

    @property
    def leading(self) -> bool:
        """Whether this one is the active orchestrator."""
        return self._leading

    @property
    def position(self) -> int:
        """How far the active orchestrator has followed the log; of use only while leading."""
        return self._position

    async def run(self) -> None:
        """Stands by, leads, and begins again after whatever went wrong; until cancelled."""
        backoff = 0.05
        while True:
            try:
                async with await connect(self._url, name="orchestrator") as connection:
                    await self._lead(connection)
            except _LOST as error:
                _log.warning("orchestrator_interrupted", error=str(error), retry_in=backoff)
            except Exception:
                _log.exception("orchestrator_failed", position=self._position, retry_in=backoff)
            backoff = 0.05 if self._leading else min(2 * backoff, LONGEST_BACKOFF)
            self._leading = False
            await asyncio.sleep(backoff)

    async def _lead(self, connection: Connection) -> None:
        self._position = await take_the_lead(connection)
        suspects = Suspects()
        self._leading = True
        _log.info("orchestrator_leads", position=self._position)
        checked = -CHECK
        while True:
            events = await self._reader.read(self._position, limit=EVENTS)
            behind = len(events) == EVENTS
            now = asyncio.get_running_loop().time()
            check = not behind and now - checked >= CHECK
            done = await run_round(
                connection,
                self._dispatch,
                self._settings,
                position=self._position,
                events=events,
                check=check,
                at=self._now(),
                suspects=suspects,
                codec=self._codec,
            )
            self._position = done.position
            checked = now if check else checked
            if not behind:
                await self._rest(done, asyncio.get_running_loop().time() - now)

    async def _rest(self, done: Done, worked: float) -> None:
        """Until something happens, a count is due, or it is time to look for the lost.

        A round that `worked` for long finds much to do next time: what it cost is then shared
        by more.
        """
        if done.more:
            return
        await asyncio.sleep(min(max(PACE, worked), LONGEST_PACE))
        patience = CHECK
        if done.count_due is not None:
            patience = min(patience, (done.count_due - self._now()).total_seconds())
        if patience > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._wakeups.wait(done.position)
