"""A process frozen at any await is declared dead and continues after others took its work."""

from __future__ import annotations

import pytest

from domain.upload.events import AttemptAbandoned
from tests.crash.awaits import awaits
from tests.crash.fake_processors import SOON
from tests.crash.fork_server import STOPPED
from tests.crash.harness import CrashHarness

FILES = {"plain.txt": b"x" * 100, "slow.txt": b"y", "virus.txt": b"z"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("role", ["work", "orchestrate"])
async def test_writes_of_a_zombie_worker_are_refused(harness: CrashHarness, role: str) -> None:
    for ends_at in awaits(4, 43 if role == "work" else 23):
        batch = await harness.harness.batch(FILES, retry_policy=SOON)
        if role == "work":
            await harness.run_process("orchestrate")
        stood_still = (await harness.run_process(role, ends_at, stands_still=True)).ended == STOPPED
        await harness.let_time_pass()
        for successor in ("orchestrate", "work", "orchestrate"):
            await harness.run_process(successor)
        for zombie in tuple(harness.zombies):
            await harness.wake(zombie)
        states = await harness.check()
        assert states.counts(batch) == {"completed": 2, "quarantined": 1}
        if not stood_still:
            break
    await harness.settle()

    if role == "work":
        assert await harness.harness.all_of(AttemptAbandoned)
