"""Processors that a server under test finds as those of an installed package."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from application.pipeline import PermanentError, StepContext, StepInput


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
