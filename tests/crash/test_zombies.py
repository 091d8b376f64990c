"""A process stands still at any await, is taken for dead, and goes on when others have its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from domain.upload.events import AttemptAbandoned
from tests.crash.awaits import awaits
from tests.crash.hands import SOON
from tests.crash.nursery import STOPPED, Nursery
from tests.crash.world import open_world

FILES = {"plain.txt": b"x" * 100, "slow.txt": b"y", "virus.txt": b"z"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("role", ["work", "orchestrate"])
async def test_what_a_zombie_writes_is_refused(
    database_url: str, nursery: Nursery, tmp_path: Path, role: str
) -> None:
    async with open_world(database_url, nursery, tmp_path) as world:
        for ends_at in awaits(4, 43 if role == "work" else 23):
            batch = await world.plant.batch(FILES, retry_policy=SOON)
            if role == "work":
                await world.live("orchestrate")
            stood_still = (await world.live(role, ends_at, stands_still=True)).ended == STOPPED
            await world.let_time_pass()
            for successor in ("orchestrate", "work", "orchestrate"):
                await world.live(successor)
            for zombie in tuple(world.zombies):
                await world.wake(zombie)
            standing = await world.check()
            assert standing.counts(batch) == {"completed": 2, "quarantined": 1}
            if not stood_still:
                break
        await world.settle()

        if role == "work":
            assert await world.plant.all_of(AttemptAbandoned)
