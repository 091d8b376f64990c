"""The example clients of docs/feed.md work."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

from domain.batch.events import BatchCompleted, BatchSealed
from tests.builders import ALICE, NOON, received
from tests.clients.installed import require_node
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.interfaces.feed.test_feed import progress
from tests.support import eventually

DOCS = Path(__file__).parents[3] / "docs"
MANUAL = (DOCS / "feed.md").read_text()


async def test_the_javascript_client_applies_every_change_once_through_a_cut(
    feed: FeedHarness,
) -> None:
    node = require_node()

    batch = await feed.batch()
    upload = await feed.upload(batch, "a.jpg")
    await feed.projected()
    client = await _started(
        node,
        "--no-warnings",
        "--experimental-websocket",
        str(DOCS / "examples/feed_client.mjs"),
        feed.address,
        await feed.key(),
        str(batch),
    )
    await eventually(lambda: feed.hub.registry.live)
    await feed.record(upload, progress(40))
    await _told(client, "upload a.jpg transferring 40")
    for gone in tuple(feed.hub.registry.clients):
        gone.transport.abort()
    await feed.record(upload, progress(80))
    await _told(client, "upload a.jpg transferring 80")
    await feed.record(upload, received())
    await _end(feed, batch)
    output, complaint = await client.communicate()
    assert client.returncode == 0, complaint.decode()
    lines = output.decode().splitlines()
    assert "upload a.jpg transferring 80" not in lines  # it was sent once
    assert lines.count("upload a.jpg received 100") == 1
    assert lines.count(f"batch {batch} completed succeeded") == 1


async def test_the_python_and_the_curl_example_show_what_happens(
    database_url: str, tmp_path: Path
) -> None:
    curl = shutil.which("curl")
    script = tmp_path / "watch.py"
    script.write_text(MANUAL.split("```python\n")[1].split("```")[0])

    async with open_feed(database_url, tmp_path / "data") as feed, AsyncExitStack() as clients:
        batch, key = await feed.batch(), await feed.key()
        await feed.projected()
        started = [await _started(sys.executable, str(script), feed.address, key, str(batch))]
        if curl is not None:
            line = next(line for line in MANUAL.splitlines() if line.startswith("curl -N"))
            known = {"$KEY": key, "$URL": feed.address, "$BATCH": str(batch)}
            for name, value in known.items():
                line = line.replace(name, value)
            started.append(await _started(curl, "-s", *shlex.split(line)[1:]))
        for client in started:
            clients.callback(client.terminate)
        await eventually(lambda: len(feed.hub.registry.live) == len(started))
        await feed.upload(batch, "a.jpg")
        for client in started:
            await _told(client, "a.jpg")


async def _started(*command: str) -> Process:
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, stdin=DEVNULL)


async def _told(client: Process, wanted: str) -> None:
    """Reads on until a line has these words."""
    assert client.stdout is not None
    async with asyncio.timeout(20):
        while (line := await client.stdout.readline()) and wanted not in line.decode():
            pass
    assert line, (await client.communicate())[1].decode()


async def _end(feed: FeedHarness, batch: UUID) -> None:
    """Seals the batch and completes it."""
    completed = BatchCompleted(
        at=NOON, by=ALICE, outcome="succeeded", counts={"completed": 1}, duration=1.0
    )
    await feed.record(batch, BatchSealed(at=NOON, by=ALICE), completed)
