"""Hypothesis draws histories of commands, clocks and processes that die at any await."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from application import commands
from application.handlers.batches import start_batch
from application.handlers.execute import execute
from domain.batch.aggregate import Batch
from domain.file import FileDeclaration
from domain.upload.aggregate import Upload
from infrastructure.read_model.rebuild import rebuild
from tests.conftest import Databases
from tests.crash.awaits import SECONDS
from tests.crash.fake_processors import SOON
from tests.crash.fork_server import DONE, ForkServer
from tests.crash.harness import CrashHarness, open_crash_harness
from tests.crash.roles import command_options
from tests.support import with_database

T = TypeVar("T")

EXAMPLES = max(5, int(SECONDS / 4))
STEPS = 14
SIZE = 25  # bytes of a file that is sent piece by piece

# In the suite always the same histories, so that a failure belongs to a change.
PROFILE = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS if not SECONDS else 30,
    derandomize=not SECONDS,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

kinds = st.sampled_from(("plain", "plain", "flaky", "slow", "bad", "virus", "hopeless"))
ends = st.one_of(st.none(), st.integers(1, 120))
which = st.integers(0, 99)  # of those there are, by the remainder

OF_BATCHES: dict[str, Callable[[UUID], commands.Command]] = {
    "seal": lambda id: commands.BatchCommand(id, Batch.seal),
    "pause": lambda id: commands.BatchCommand(id, Batch.pause),
    "resume": lambda id: commands.BatchCommand(id, Batch.resume),
    "cancel": lambda id: commands.BatchCommand(id, Batch.cancel),
    "retry": lambda id: commands.BatchCommand(id, Batch.request_retry),
    "hurry": lambda id: commands.BatchCommand(id, partial(Batch.prioritize, priority=9)),
}
OF_UPLOADS: dict[str, Callable[[UUID], commands.Command]] = {
    "cancel": lambda id: commands.UploadCommand(id, Upload.cancel),
    "retry": commands.retry_upload,
    "release": lambda id: commands.release_upload(id, "looked at it"),
}


class AnyHistory(RuleBasedStateMachine):
    """Rules are what may happen next; what must hold is looked at after each, and at the end.

    A rule whose subject is missing does nothing, rather than not be chosen: at which await a
    process dies is chosen alike each time, what it had done by then is not.
    """

    def __init__(self, databases: Databases, fork_server: ForkServer, folder: Path) -> None:
        super().__init__()
        self._databases = databases
        self._name = databases.take()
        self._folder = folder / self._name
        self._folder.mkdir()
        self._fork_server = fork_server
        self._runner = asyncio.Runner()
        self._open = AsyncExitStack()
        self._batches: list[UUID] = []
        self._uploads: list[UUID] = []
        self._unsent: list[UUID] = []

    @initialize()
    def begin(self) -> None:
        url = with_database(self._databases.server_url, self._name)
        opening = open_crash_harness(url, self._fork_server, self._folder)
        self.harness: CrashHarness = self._run(self._open.enter_async_context(opening))

    @rule(files=st.lists(kinds, min_size=1, max_size=3), seal=st.booleans())
    def a_batch_arrives(self, files: list[str], seal: bool) -> None:
        contents = {f"{number}-{kind}": b"x" * 9 for number, kind in enumerate(files)}
        batch = self._run(self.harness.harness.batch(contents, seal=seal, retry_policy=SOON))
        self._batches.append(batch)
        self._uploads += self._run(self.harness.uploads_of(batch))

    @rule(ends_at=ends)
    def a_batch_is_announced(self, ends_at: int | None) -> None:
        files = (FileDeclaration(path="later.txt", size=SIZE),)
        asked = commands.StartBatch(id=uuid4(), owner="acme", files=files, retry_policy=SOON)
        self._run(self.harness.run_process("command", ends_at, **command_options(asked)))
        assert self._run(self.harness.ask(start_batch, asked))
        self._batches.append(asked.id)
        self._unsent += self._run(self.harness.uploads_of(asked.id))

    @rule(ends_at=ends)
    def bytes_are_sent(self, ends_at: int | None) -> None:
        if not self._unsent:
            return
        report = self._run(
            self.harness.run_process("receive", ends_at, upload=self._unsent[0], size=SIZE)
        )
        if report.ended == DONE:
            self._uploads.append(self._unsent.pop(0))

    @rule(name=st.sampled_from(sorted(OF_BATCHES)), one=which, ends_at=ends)
    def a_batch_is_changed(self, name: str, one: int, ends_at: int | None) -> None:
        if not self._batches:
            return
        asked = OF_BATCHES[name](self._batches[one % len(self._batches)])
        self._run(self.harness.run_process("command", ends_at, **command_options(asked)))

    @rule(name=st.sampled_from(sorted(OF_UPLOADS)), one=which)
    def an_upload_is_changed(self, name: str, one: int) -> None:
        if not self._uploads:
            return
        command = OF_UPLOADS[name]
        self._run(self.harness.ask(execute, command(self._uploads[one % len(self._uploads)])))

    @rule(ends_at=ends, stands_still=st.booleans())
    def an_orchestrator_lives(self, ends_at: int | None, stands_still: bool) -> None:
        self._run(self.harness.run_process("orchestrate", ends_at, stands_still=stands_still))

    @rule(ends_at=st.one_of(st.none(), st.integers(1, 250)), stands_still=st.booleans())
    def a_worker_lives(self, ends_at: int | None, stands_still: bool) -> None:
        self._run(self.harness.run_process("work", ends_at, stands_still=stands_still))

    @rule(one=which)
    def a_zombie_goes_on(self, one: int) -> None:
        if not self.harness.zombies:
            return
        self._run(self.harness.wake(self.harness.zombies[one % len(self.harness.zombies)]))

    @rule()
    def time_passes(self) -> None:
        self._run(self.harness.let_time_pass())

    @rule()
    def a_quiet_day(self) -> None:
        """Work without a crash, so that histories make progress."""
        for role in ("orchestrate", "work", "orchestrate"):
            self._run(self.harness.run_process(role))

    @rule(ends_at=ends)
    def a_projector_lives(self, ends_at: int | None) -> None:
        self._run(self.harness.run_process("project", ends_at))

    @rule()
    def the_read_model_is_built_anew(self) -> None:
        self._run(rebuild(self.harness.harness.url, self.harness.harness.log))

    @rule()
    def everybody_has_forgotten_the_open_batches(self) -> None:
        self._run(self.harness.run_process("orchestrate", settings={"batch_expiry": 0.000_001}))

    @invariant()
    def the_log_is_lawful(self) -> None:
        if hasattr(self, "harness"):
            self._run(self.harness.check())

    def teardown(self) -> None:
        try:
            if hasattr(self, "harness"):
                self._run(self._to_the_end())
        finally:
            self._runner.run(self._open.aclose())
            self._runner.close()
            self._databases.drop(self._name)

    async def _to_the_end(self) -> None:
        """Seal and resume every batch, then work without a crash."""
        for upload in self._unsent:
            await self.harness.ask(execute, OF_UPLOADS["cancel"](upload))
        for batch in self._batches:
            await self.harness.ask(execute, OF_BATCHES["resume"](batch))
            await self.harness.ask(execute, OF_BATCHES["seal"](batch))
        await self.harness.settle()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


@pytest.mark.timeout(int(SECONDS) * 10 + 300)
def test_any_history_comes_to_its_end(
    databases: Databases, fork_server: ForkServer, tmp_path: Path
) -> None:
    run_state_machine_as_test(
        lambda: AnyHistory(databases, fork_server, tmp_path), settings=PROFILE
    )
