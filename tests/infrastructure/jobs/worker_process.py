"""A worker in a process of its own, to be killed: every attempt lasts for ever."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.infrastructure.jobs.hands import Gate
from tests.infrastructure.jobs.plant import open_plant, pipeline


async def main(url: str, folder: str) -> None:
    async with open_plant(
        url, Path(folder), pipelines=pipeline("step"), max_worker_losses=2
    ) as plant:
        await plant.work({"step": Gate()})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
