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


async def hold(subject: StepInput, bench: StepContext, options: dict[str, Any]) -> dict[str, Any]:
    """Writes down that it is at work, and does not end before the gate is there.

    Options: `gate`, a file; `book`, a folder in which each run keeps a page while it lasts. The
    page is made exclusively: a second run of the same attempt could not go unnoticed.
    """
    page = Path(options["book"]) / f"{subject.upload}.{subject.attempt}"
    with page.open("x") as text:
        text.write(str(os.getpid()))
    try:
        while not os.path.exists(options["gate"]):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
    finally:
        page.unlink()
    return {"attempt": subject.attempt}


async def stumble(
    subject: StepInput, bench: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Meets another trouble in every attempt, if the path says that it is `clumsy`."""
    if "broken" in subject.path:
        raise PermanentError(f"{subject.path} is broken through and through")
    if "clumsy" in subject.path:
        kinds = (ConnectionResetError, TimeoutError, ValueError)
        raise kinds[(subject.attempt - 1) % 3](f"trouble number {subject.attempt}")
    return {}


async def linger(subject: StepInput, bench: StepContext, options: dict[str, Any]) -> dict[str, Any]:
    """Take a while, so that a worker may be killed in the middle; return and attach the hash.

    Raises ConnectionResetError, now and then, for a path that contains "flaky".
    """
    digest = hashlib.sha256()
    async for chunk in bench.read():
        digest.update(chunk)
    for step in range(3):
        await asyncio.sleep(random.uniform(0, LONGEST_LINGERING / 3))
        await bench.progress(step + 1, 3)
    if "flaky" in subject.path and random.random() < 0.5:
        raise ConnectionResetError("the service hung up")
    await bench.attach("sha256.txt", digest.hexdigest().encode())
    return {"sha256": digest.hexdigest()}
