"""The orchestrator: follows the log, round after round, while it leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import structlog

from application.orchestrator.suspecting import Suspects
from application.ports.event_log import EventLog, Wakeups
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.jobs.leadership import POLL_INTERVAL, SESSION_SETTINGS, load_position
from infrastructure.jobs.queue import Dispatch
from infrastructure.jobs.round import Done, run_round
from infrastructure.postgres.locks import ORCHESTRATOR_LOCK, run_as_leader
from infrastructure.postgres.pool import Connection
from infrastructure.settings import Settings

EVENTS = 1000  # a round
CHECK = 1.0  # seconds between two looks for dead workers and lost uploads
PACE = 0.05  # seconds between two rounds, in which events gather; longer after a long round
LONGEST_PACE = 0.2

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
        """Stand by until this one leads, and lead until cancelled.

        Raises what interrupts it, LeadershipLost, psycopg.Error or Unavailable as a rule: it goes
        on from the saved position when it is run again.
        """
        try:
            await run_as_leader(
                self._url,
                ORCHESTRATOR_LOCK,
                self._lead,
                name="orchestrator",
                settings=SESSION_SETTINGS,
                poll_interval=POLL_INTERVAL,
            )
        finally:
            self._leading = False

    async def _lead(self, connection: Connection) -> None:
        self._position = await load_position(connection)
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
