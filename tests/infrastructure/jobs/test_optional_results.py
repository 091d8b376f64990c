from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from application.errors import StorageFull
from application.pipeline import Pipeline, Step, StepContext, StepInput
from domain.batch.state import Outcome
from domain.upload.events import AttemptFailed, AttemptSucceeded
from infrastructure.processors.registry import open_processors
from tests.infrastructure.jobs.harness import open_harness
from tests.infrastructure.processors.pictures import picture


async def test_an_optional_step_that_does_not_end_in_time_is_skipped(
    database_url: str, tmp_path: Path
) -> None:
    class Endless:
        optional = True

        async def __call__(
            self, subject: StepInput, step_context: StepContext, options: dict[str, Any]
        ) -> dict[str, Any]:
            await asyncio.Event().wait()
            return {}

    async def last(
        subject: StepInput, step_context: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        return {"before": subject.results}

    steps = (Step(processor="endless", timeout=0.2), Step(processor="last"))

    async with open_harness(
        database_url, tmp_path, pipelines={"default": Pipeline(steps=steps)}
    ) as harness:
        harness.orchestrate()
        worker = harness.work({"endless": Endless(), "last": last})
        done = await harness.completed(await harness.batch({"a.txt": b"words"}))
        await harness.stop(worker)

        assert done.outcome is Outcome.SUCCEEDED
        (attempt,) = await harness.all_of(AttemptSucceeded)
        skipped = {"skipped": "endless did not finish within 0.2 s"}
        assert attempt.results["endless"] == skipped
        assert attempt.results["last"] == {"before": {"endless": skipped}}
        assert await harness.all_of(AttemptFailed) == []


async def test_a_full_disk_costs_a_file_its_thumbnail_and_nothing_else(
    database_url: str, tmp_path: Path
) -> None:
    steps = (Step(processor="checksum"), Step(processor="thumbnail"))

    async with open_harness(
        database_url, tmp_path, pipelines={"default": Pipeline(steps=steps)}
    ) as harness:
        put = harness.blobs.put

        async def put_without_room(name: str, content: bytes) -> None:
            if name.startswith("artifacts/"):
                raise StorageFull("no space left on device")
            await put(name, content)

        harness.blobs.put = put_without_room  # type: ignore[method-assign]
        async with open_processors() as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            done = await harness.completed(await harness.batch({"a.png": picture("PNG")}))
            await harness.stop(worker)

        assert done.outcome is Outcome.SUCCEEDED
        (attempt,) = await harness.all_of(AttemptSucceeded)
        assert "no space left on device" in attempt.results["thumbnail"]["skipped"]
        assert attempt.artifacts == {}


async def test_two_thumbnail_steps_of_one_pipeline_keep_a_picture_each(
    database_url: str, tmp_path: Path
) -> None:
    steps = (
        Step(processor="thumbnail", options={"side": 200}),
        Step(processor="thumbnail", name="preview", options={"side": 400}),
    )

    async with open_harness(
        database_url, tmp_path, pipelines={"default": Pipeline(steps=steps)}
    ) as harness:
        async with open_processors() as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            done = await harness.completed(await harness.batch({"a.png": picture("PNG")}))
            await harness.stop(worker)

        assert done.outcome is Outcome.SUCCEEDED
        (attempt,) = await harness.all_of(AttemptSucceeded)
        assert attempt.artifacts.keys() == {"thumbnail.webp", "preview.webp"}
        widths = [attempt.results[step]["width"] for step in ("thumbnail", "preview")]
        assert widths == [200, 400]
