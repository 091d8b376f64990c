"""Processors that server processes under test find as those of an installed package."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from pathlib import Path
from typing import Any

from application.pipeline import PermanentError, StepContext, StepInput

LONGEST_LINGERING = 0.4  # seconds


async def hold(
    subject: StepInput, step_context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Mark that it runs, and do not end before the gate exists.

    Options: `gate`, a file; `marks`, a folder in which each run keeps a file while it lasts. The
    file is made exclusively: a second run of the same attempt could not go unnoticed.
    """
    mark = Path(options["marks"]) / f"{subject.upload}.{subject.attempt}"
    with mark.open("x") as text:
        text.write(str(os.getpid()))
    try:
        while not os.path.exists(options["gate"]):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
    finally:
        mark.unlink()
    return {"attempt": subject.attempt}


async def stumble(
    subject: StepInput, step_context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Meets another trouble in every attempt, if the path says that it is `clumsy`."""
    if "broken" in subject.path:
        raise PermanentError(f"{subject.path} is broken through and through")
    if "clumsy" in subject.path:
        kinds = (ConnectionResetError, TimeoutError, ValueError)
        raise kinds[(subject.attempt - 1) % 3](f"trouble number {subject.attempt}")
    return {}


async def linger(
    subject: StepInput, step_context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Take a while, so that a worker may be killed in the middle; return and attach the hash.

    Raises ConnectionResetError, now and then, for a path that contains "flaky".
    """
    digest = hashlib.sha256()
    async for chunk in step_context.read():
        digest.update(chunk)
    for step in range(3):
        await asyncio.sleep(random.uniform(0, LONGEST_LINGERING / 3))
        await step_context.progress(step + 1, 3)
    if "flaky" in subject.path and random.random() < 0.5:
        raise ConnectionResetError("the service hung up")
    await step_context.attach("sha256.txt", digest.hexdigest().encode())
    return {"sha256": digest.hexdigest()}
