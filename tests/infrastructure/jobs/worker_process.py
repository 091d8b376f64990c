"""Worker process to be killed: its attempts never end."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.infrastructure.jobs.fake_processors import Gate
from tests.infrastructure.jobs.harness import open_harness, pipeline


async def main(url: str, folder: str) -> None:
    async with open_harness(
        url, Path(folder), pipelines=pipeline("step"), max_worker_losses=2
    ) as harness:
        await harness.work({"step": Gate()})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
