"""Orchestrator and workers in processes that are killed, and the invariants that must hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from application.commands import Command
from application.errors import ApplicationError
from domain.batch.state import outcome_of
from domain.errors import CommandRejected
from domain.upload.events import AttemptSucceeded
from domain.upload.state import UploadState
from infrastructure.read_model.projector import catch_up
from infrastructure.read_model.rebuild import verify
from tests.crash.fork_server import STOPPED, ForkServer, ProcessOrder, ProcessReport
from tests.infrastructure.jobs.harness import PipelineHarness, context, open_harness
from tests.invariants import UNFINISHED, FinalStates, InvariantViolated, check_log

ROUNDS = 12  # of orchestrator and worker, in which everything that is left must come to its end

_AGE = "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '2 hours'"

# What the server does by itself to idle sessions: see LEADER_TIMEOUTS and the committer.
_GIVE_UP_ON_THE_SILENT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
AND (application_name = 'uptrail-orchestrator' OR state LIKE 'idle in transaction%%')"""

_JOBS = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
_MEMBERS = "SELECT upload, state, version FROM orchestration.members"


class CrashHarness:
    """A database with its log and blobs, and the fork server for its processes."""

    def __init__(self, harness: PipelineHarness, fork_server: ForkServer, folder: Path) -> None:
        self.harness = harness
        self.zombies: list[int] = []
        self._fork_server = fork_server
        self._folder = folder
        self._acknowledged: set[int] = set()

    # Commands.

    async def run_process(
        self, role: str, ends_at: int | None = None, **more: Any
    ) -> ProcessReport:
        """Run one process to its end, or to the await at which it is killed or stopped."""
        if self.zombies:
            await self.harness.fetch(_GIVE_UP_ON_THE_SILENT)
        stands_still = more.pop("stands_still", False)
        report = self._fork_server.run(
            ProcessOrder(
                role=role,
                url=self.harness.url,
                folder=str(self._folder),
                options=msgspec.to_builtins(more),
                ends_at=ends_at,
                stands_still=stands_still,
            )
        )
        if report.ended == STOPPED:
            self.zombies.append(report.pid)
        return report

    async def wake(self, zombie: int) -> None:
        """Continue a stopped process."""
        self.zombies.remove(zombie)
        self._fork_server.run(ProcessOrder(wake=zombie))

    async def let_time_pass(self) -> None:
        """Long enough for every worker that is not heard of to be taken for dead."""
        await self.harness.fetch_none(_AGE)

    async def ask(self, handler: Any, command: Command) -> Any:
        """Execute a command as the API does; None if it is refused."""
        try:
            answer = await handler(self.harness.log, command, context())
        except (CommandRejected, ApplicationError):
            return None
        if answer.position:
            self._acknowledged.add(answer.position)
        return answer

    async def settle(self) -> FinalStates:
        """Without further crashes every batch that is neither paused nor open ends, and agrees."""
        while self.zombies:
            await self.wake(self.zombies[0])
        for _ in range(ROUNDS):
            await self.let_time_pass()
            await self.run_process("orchestrate")
            await self.run_process("work")
            states = await self.check()
            if set(states.batches.values()) <= {"completed"}:
                break
        else:
            stuck = [batch for batch, state in states.batches.items() if state != "completed"]
            raise InvariantViolated(f"stuck: {[(batch, states.counts(batch)) for batch in stuck]}")
        await self.run_process("orchestrate")
        await self._check_end(await self.check())
        return states

    async def uploads_of(self, batch: UUID) -> list[UUID]:
        """In the order of their paths."""
        found = await self.harness.uploads(batch)
        return [found[path].id for path in sorted(found)]

    # Invariants.

    async def check(self) -> FinalStates:
        """At any moment: the log is lawful, and everything acknowledged is in it."""
        events = await self.harness.events()
        states = check_log(events)
        lost = self._acknowledged - {recorded.position for recorded in events}
        if lost:
            raise InvariantViolated(f"acknowledged at {lost}, and not in the log")
        return states

    async def _check_end(self, states: FinalStates) -> None:
        """At the end: verdicts follow from the sets, and every table from the log."""
        assert not set(states.uploads.values()) & UNFINISHED, states
        for batch, outcome in states.outcomes.items():
            counts = {UploadState(s): n for s, n in states.counts(batch).items()}
            if outcome not in ("cancelled", "expired"):
                assert outcome == outcome_of(counts, None), (batch, counts)
            self.harness.log.forget(batch)
            progress = (await self.harness.log.batch(batch)).progress
            assert not counts or (progress and progress.counts == counts), (batch, progress)
        assert await self.harness.fetch(_JOBS) == [(0,)]
        members = await self.harness.fetch(_MEMBERS)
        assert {id: state for id, state, _ in members} == states.uploads
        await self._check_artifacts(states)
        await catch_up(self.harness.url, self.harness.log)
        verification = await verify(self.harness.url, self.harness.log)
        assert verification.sound, verification

    async def _check_artifacts(self, states: FinalStates) -> None:
        """The artifacts of a completed attempt equal those it recorded."""
        for recorded in await self.harness.events():
            if isinstance(event := recorded.event, AttemptSucceeded):
                for blob in event.artifacts.values():
                    assert await self.harness.blobs.size(blob) == event.results["step"]["size"]


@asynccontextmanager
async def open_crash_harness(
    url: str, fork_server: ForkServer, folder: Path
) -> AsyncIterator[CrashHarness]:
    async with open_harness(url, folder) as harness:
        yield CrashHarness(harness, fork_server, folder)
