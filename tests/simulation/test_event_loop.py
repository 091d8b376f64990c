"""The event loop of the simulation: virtual time, seeded order, processes that are killed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.simulation.event_loop import NothingLeft, Process, SimulatedLoop


@pytest.fixture
def loop() -> Iterator[SimulatedLoop]:
    loop = SimulatedLoop(1)
    yield loop
    loop.abandon_tasks()
    loop.close()


def test_an_hour_passes_at_once(loop: SimulatedLoop) -> None:
    loop.run_until_complete(asyncio.sleep(3600))

    assert loop.time() == 3600


def test_the_seed_decides_which_task_runs_first() -> None:
    orders = {_order_of_tasks(seed) for seed in range(20)}

    assert len(orders) > 5
    assert _order_of_tasks(3) == _order_of_tasks(3)


def _order_of_tasks(seed: int) -> tuple[int, ...]:
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    async def run() -> None:
        await asyncio.gather(*(note(number) for number in range(5)))

    loop = SimulatedLoop(seed)
    loop.run_until_complete(run())
    loop.close()
    return tuple(order)


def test_no_line_of_a_killed_process_runs_any_more(loop: SimulatedLoop) -> None:
    lines: list[str] = []
    process = Process("api", loop)

    async def work() -> None:
        try:
            lines.append("begins")
            await asyncio.sleep(10)
            lines.append("ends")
        finally:
            lines.append("cleans up")

    async def run() -> None:
        process.start(work())
        await asyncio.sleep(5)
        process.kill()
        await asyncio.sleep(10)

    loop.run_until_complete(run())

    assert lines == ["begins"]


def test_waiting_for_what_never_comes_is_an_error(loop: SimulatedLoop) -> None:
    with pytest.raises(NothingLeft):
        loop.run_until_complete(asyncio.Event().wait())
