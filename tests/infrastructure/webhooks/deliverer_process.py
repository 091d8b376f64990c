"""Deliverer in a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import sys

from tests.infrastructure.webhooks.harness import open_webhook_harness


async def main(url: str) -> None:
    async with open_webhook_harness(url) as harness:
        await (await harness.deliver())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
