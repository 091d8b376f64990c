from __future__ import annotations

import asyncio
from typing import Any

import pytest

from application.pipeline import Pipeline, Step, StepContext, StepInput
from application.worker.runner import AttemptSemaphore
from domain.batch.state import Outcome
from domain.upload.events import AttemptStarted
from tests.infrastructure.jobs.fake_processors import Gate
from tests.infrastructure.jobs.harness import PipelineHarness
from tests.support import eventually

CONCURRENCY = 2
LIMITED = {"default": Pipeline(steps=(Step(processor="step", concurrency=CONCURRENCY),))}


@pytest.mark.options(pipelines=LIMITED)
async def test_a_step_never_has_more_uploads_than_its_concurrency(harness: PipelineHarness) -> None:
    gate = CountingGate()

    async def all_started(harness: PipelineHarness) -> bool:
        return len(await harness.all_of(AttemptStarted)) == 8

    harness.run({"step": gate})
    batch = await harness.batch({f"{n}.txt": b"x" for n in range(8)})
    await harness.until(lambda: all_started(harness))
    await harness.until(lambda: len(gate.inside) == CONCURRENCY)
    gate.open()

    assert (await harness.completed(batch)).outcome is Outcome.SUCCEEDED
    assert gate.largest == CONCURRENCY


async def test_an_exclusive_attempt_waits_for_the_others_and_holds_back_the_next() -> None:
    attempts, order = AttemptSemaphore(2), []
    gates = {name: asyncio.Event() for name in "abc"}

    async def attempt(name: str, *, exclusive: bool = False) -> None:
        async with attempts.acquire(exclusive=exclusive):
            order.append(name)
            await gates[name].wait()

    tasks = [asyncio.create_task(attempt("a"))]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(attempt("b", exclusive=True)))
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(attempt("c")))
    for name, following in (("a", "ab"), ("b", "abc"), ("c", "abc")):
        for _ in range(10):
            await asyncio.sleep(0)
        assert order == list("abc"[: "abc".index(name) + 1])
        gates[name].set()
        await eventually(lambda: "".join(order) == following)  # noqa: B023
    await asyncio.gather(*tasks)


class CountingGate(Gate):
    """A gate that counts how many attempts waited at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    async def __call__(
        self, subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        self.largest = max(self.largest, len(self.inside) + 1)
        return await super().__call__(subject, step_context, options)
