"""Two orchestrators: one leads, the other takes over when it is killed; nothing happens twice."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.machines.audit import check, completed, streams_of
from tests.machines.site import PATIENCE, Machine, Site, ask, site
from tests.machines.uploader import Uploader
from tests.support import eventually

pytestmark = pytest.mark.timeout(400)  # whole processes start, several times

FILES = {f"{number}.txt": b"text %d" % number * 50 for number in range(60)}


async def test_a_standby_leads_when_the_orchestrator_is_killed_and_nothing_is_lost_or_doubled(
    database_url: str, tmp_path: Path
) -> None:
    with site(tmp_path, database_url) as running:
        api = running.machine("front", "api", "worker")
        running.machine("first", "orchestrator")
        running.machine("second", "orchestrator")
        running.wait_until_up()

        headers = {"Authorization": f"Bearer {api.key}"}
        async with aiohttp.ClientSession(api.url, headers=headers) as client:
            leader = await eventually(lambda: leading(client, running), PATIENCE)
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
            check(await streams_of(client, batch), len(FILES))
            successor = await eventually(lambda: leading(client, running, but=leader), PATIENCE)
            assert "orchestrator_leads" in successor.told


async def send(uploader: Uploader, names: list[str]) -> None:
    await asyncio.gather(*(uploader.send(name, FILES[name]) for name in names))


async def leading(
    client: aiohttp.ClientSession, running: Site, but: Machine | None = None
) -> Machine | None:
    """The machine that says it leads and was heard of lately."""
    found: list[dict[str, Any]] = (await ask(client, "GET", "/v1/workers"))["processes"]
    alive = [one for one in found if one["leads"] and one["alive"]]
    machines = [running.named(one["pid"]) for one in alive]
    return next((machine for machine in machines if machine is not but), None)
