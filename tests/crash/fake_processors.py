"""Processors that end as the path of their file says, and settings without long pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from application.pipeline import (
    PermanentError,
    Pipeline,
    Processor,
    Quarantine,
    Step,
    StepContext,
    StepInput,
)
from domain.retry import RetryPolicy

ATTEMPTS = 3
SOON = RetryPolicy(attempts=ATTEMPTS, first_delay=0.001, longest_delay=0.001)

SETTINGS: Mapping[str, Any] = {
    "pipelines": {"default": Pipeline(steps=(Step(processor="step"),))},
    "batch_progress_interval": 0.001,
    "step_progress_interval": 0.005,
    "worker_heartbeat": 0.1,
    "worker_dead_after": 3600.0,  # no worker counts as dead on a slow machine
}


async def step(
    subject: StepInput, step_context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Passes, and leaves an artifact; unless the path asks for something else."""
    if "slow" in subject.path:
        for part in range(4):
            await asyncio.sleep(0.01)
            await step_context.progress(part + 1, 4)
    if "flaky" in subject.path and subject.attempt == 1:
        raise ConnectionResetError("the scanner hung up")
    if "hopeless" in subject.path:
        raise ConnectionResetError("the scanner never answers")
    if "bad" in subject.path:
        raise PermanentError("bad through and through")
    if "virus" in subject.path:
        raise Quarantine("EICAR")
    content = b"".join([chunk async for chunk in step_context.read()])
    await step_context.attach("copy", content)
    return {"size": len(content)}


PROCESSORS: Mapping[str, Processor] = {"step": step}
