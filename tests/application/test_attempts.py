"""Attempts whose appends are recorded without an answer, on the log in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from application.append import append_to_stream
from application.errors import OutcomeUnknown
from application.worker.attempt import AttemptWriter, PipelinePassed
from domain.errors import StaleAttempt
from domain.event import topic_of
from domain.upload.events import AttemptAbandoned
from tests.builders import FILE, NOON, queued, received, registered
from tests.memory.database import MemoryDatabase, Wire
from tests.memory.event_log import memory_event_log, whole_log
from tests.simulation.event_loop import SimulatedLoop

PASSED = PipelinePassed({"step": {}}, {"thumbnail": "artifacts/a"})


class ScriptedWire(Wire):
    """A way that loses the next answers to `append`, and then the next reads."""

    def __init__(self) -> None:
        self.lost_answers = 0
        self.lost_reads = 0
        self.late: float | None = None

    async def request(self, name: str) -> None:
        if name in ("stream", "snapshot") and self.lost_reads:
            self.lost_reads -= 1
            raise psycopg.OperationalError("not now")

    async def response(self, name: str) -> None:
        if name == "append" and self.lost_answers:
            self.lost_answers -= 1
            raise psycopg.OperationalError("the answer is lost")

    def loses_commit(self) -> float | None:
        late, self.late = self.late, None
        return late


@pytest.fixture
def run() -> Iterator[Callable[[Any], Any]]:
    """Run a coroutine without waiting for the time that passes in it."""
    loop = SimulatedLoop(1)
    yield loop.run_until_complete
    loop.close()


async def begun(database: MemoryDatabase, wire: Wire) -> AttemptWriter:
    log = await memory_event_log(database, wire).__aenter__()
    await log.append(append_to_stream(FILE, 0, registered(), received(), queued()))
    attempt = AttemptWriter(log, await log.upload(FILE), "one", now)
    await attempt.begin()
    return attempt


def now() -> datetime:
    return NOON


async def topics(database: MemoryDatabase) -> list[str]:
    return [topic_of(recorded.event) for recorded in await whole_log(database)]


def test_a_completion_without_an_answer_is_no_other_writers(run: Callable[[Any], Any]) -> None:
    async def story() -> None:
        database, wire = MemoryDatabase(), ScriptedWire()
        attempt = await begun(database, wire)
        wire.lost_answers, wire.lost_reads = 1, 3

        await attempt.end(PASSED, 0.5)

        assert (await topics(database))[-2:] == ["upload.attempt_succeeded", "upload.completed"]

    run(story())


def test_a_completion_that_is_recorded_late_is_no_other_writers(run: Callable[[Any], Any]) -> None:
    async def story() -> None:
        database, wire = MemoryDatabase(), ScriptedWire()
        attempt = await begun(database, wire)
        wire.late = 0.5000001  # after the upload was read again, and before the next append

        await attempt.end(PASSED, 0.5)

        assert (await topics(database)).count("upload.completed") == 1

    run(story())


def test_an_attempt_goes_on_after_progress_without_an_answer(run: Callable[[Any], Any]) -> None:
    async def story() -> None:
        database, wire = MemoryDatabase(), ScriptedWire()
        attempt = await begun(database, wire)
        wire.lost_answers = 1
        with pytest.raises(OutcomeUnknown):
            await attempt.record_progress("step", 1, 4)

        assert not await attempt.is_stale(attempt.upload.version + 1)
        await attempt.record_progress("step", 2, 4)
        await attempt.end(PASSED, 0.5)

        assert (await topics(database))[-4:] == [
            *["upload.file_progressed"] * 2,
            *("upload.attempt_succeeded", "upload.completed"),
        ]

    run(story())


def test_an_attempt_that_another_writer_ended_is_stale(run: Callable[[Any], Any]) -> None:
    async def story() -> None:
        database, wire = MemoryDatabase(), ScriptedWire()
        attempt = await begun(database, wire)
        abandoned = AttemptAbandoned(
            at=NOON, by="orchestrator", number=1, worker="one", reason="gone"
        )
        other = memory_event_log(database)
        await other.append(append_to_stream(FILE, attempt.upload.version, abandoned))

        assert await attempt.is_stale(attempt.upload.version + 1)
        with pytest.raises(StaleAttempt):
            await attempt.end(PASSED, 0.5)

    run(story())
