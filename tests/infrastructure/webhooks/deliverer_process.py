"""A deliverer in a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import sys

from tests.infrastructure.webhooks.office import open_office


async def main(url: str) -> None:
    async with open_office(url) as office:
        await (await office.deliver())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
