"""Two orchestrators: one leads, the other takes over when it is killed; nothing happens twice."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.end_to_end.histories import check_complete, completed, streams_of
from tests.end_to_end.uploader import Uploader, ask
from tests.server_process import TIMEOUT, Cluster, ServerProcess, open_machines
from tests.support import eventually

pytestmark = pytest.mark.timeout(400)  # whole processes start, several times

FILES = {f"{number}.txt": b"text %d" % number * 50 for number in range(60)}


async def test_a_standby_leads_when_the_orchestrator_is_killed_and_nothing_is_lost_or_doubled(
    database_url: str, tmp_path: Path
) -> None:
    with open_machines(database_url, tmp_path) as running:
        api = running.serve("front", "api", "worker")
        running.serve("first", "orchestrator")
        running.serve("second", "orchestrator")
        running.wait_until_ready()

        headers = {"Authorization": f"Bearer {api.key}"}
        async with aiohttp.ClientSession(api.url, headers=headers) as client:
            leader = await eventually(lambda: leading(client, running), TIMEOUT)
            started = await ask(client, "POST", "/v1/batches", {})
            batch = f"/v1/batches/{started['id']}"
            uploader = Uploader(client, [""], batch)
            names = list(FILES)
            await send(uploader, names[:30])

            leader.end(signal.SIGKILL)

            await send(uploader, names[30:])
            await ask(client, "POST", f"{batch}/seal")
            view = await completed(client, batch)
            assert (view["outcome"], view["counts"]) == ("succeeded", {"completed": len(FILES)})
            check_complete(await streams_of(client, batch), len(FILES))
            successor = await eventually(lambda: leading(client, running, but=leader), TIMEOUT)
            assert "orchestrator_leads" in successor.output


async def send(uploader: Uploader, names: list[str]) -> None:
    await asyncio.gather(*(uploader.send(name, FILES[name]) for name in names))


async def leading(
    client: aiohttp.ClientSession, running: Cluster, but: ServerProcess | None = None
) -> ServerProcess | None:
    """The machine that says it leads and was heard of lately."""
    found: list[dict[str, Any]] = (await ask(client, "GET", "/v1/workers"))["processes"]
    alive = [one for one in found if one["leads"] and one["alive"]]
    machines = [running.with_pid(one["pid"]) for one in alive]
    return next((machine for machine in machines if machine is not but), None)
