"""A process is killed at its first await, the next one at its second, and so on to the last."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest

from application.commands import BatchCommand
from application.handlers.execute import execute
from domain.batch.aggregate import Batch
from domain.upload.events import UploadCompleted
from tests.crash.awaits import awaits
from tests.crash.fake_processors import SOON
from tests.crash.fork_server import DONE
from tests.crash.harness import CrashHarness

FILES = {"plain.txt": b"x" * 100, "flaky.txt": b"y", "bad.txt": b"z"}


@pytest.mark.timeout(1800)
async def test_orchestrators_and_workers_killed_at_every_await_lose_and_repeat_nothing(
    harness: CrashHarness,
) -> None:
    batches: list[UUID] = []
    for ends_at in awaits(10, 17):
        batches.append(await harness.harness.batch(FILES, retry_policy=SOON))
        await _change_minds(harness, batches)
        await harness.let_time_pass()
        ends = [(await harness.run_process(role, ends_at)).ended for role in ROLES]
        if ends == [DONE, DONE]:
            break
    states = await harness.settle()

    uncancelled = [b for b in batches if states.outcomes[b] != "cancelled"]
    assert len(uncancelled) > len(batches) / 2
    for batch in uncancelled:
        assert states.counts(batch) == {"completed": 2, "failed": 1}
    completed = Counter(
        recorded.stream
        for recorded in await harness.harness.events()
        if isinstance(recorded.event, UploadCompleted)
    )
    assert set(completed.values()) == {1}


ROLES = ("orchestrate", "work")


async def _change_minds(harness: CrashHarness, batches: list[UUID]) -> None:
    """Now and then an earlier batch is cancelled, paused for one round, or retried."""
    last, one_before = batches[-1], batches[-2:][0]
    match len(batches) % 6:
        case 1:
            await harness.ask(execute, BatchCommand(one_before, Batch.cancel))
        case 3:
            await harness.ask(execute, BatchCommand(last, Batch.pause))
        case 4:
            await harness.ask(execute, BatchCommand(one_before, Batch.resume))
        case 5:
            await harness.ask(execute, BatchCommand(one_before, Batch.request_retry))
        case _:
            pass
