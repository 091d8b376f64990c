from __future__ import annotations

from pathlib import Path
from typing import Any

from application.pipeline import Pipeline, Step, Subject, Workbench
from domain.batch.state import Outcome
from domain.upload.events import AttemptStarted
from tests.infrastructure.jobs.hands import Gate
from tests.infrastructure.jobs.plant import Plant, play

PLACES = 2
LIMITED = {"default": Pipeline(steps=(Step(processor="step", concurrency=PLACES),))}


def test_a_step_never_has_more_uploads_than_it_has_places(
    database_url: str, tmp_path: Path
) -> None:
    gate = Crowd()

    async def story(plant: Plant) -> None:
        plant.orchestrate()
        plant.work({"step": gate})
        batch = await plant.batch({f"{n}.txt": b"x" for n in range(8)})
        await plant.until(lambda: all_started(plant))
        await plant.until(lambda: len(gate.inside) == PLACES)
        gate.open()

        assert (await plant.completed(batch)).outcome is Outcome.SUCCEEDED
        assert gate.largest == PLACES

    async def all_started(plant: Plant) -> bool:
        return len(await plant.all_of(AttemptStarted)) == 8

    play(database_url, tmp_path, story, pipelines=LIMITED)


class Crowd(Gate):
    """A gate that knows how many were inside at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    async def __call__(
        self, subject: Subject, bench: Workbench, options: dict[str, Any]
    ) -> dict[str, Any]:
        self.largest = max(self.largest, len(self.inside) + 1)
        return await super().__call__(subject, bench, options)
