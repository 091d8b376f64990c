"""Three workers: one is killed and one frozen during an attempt; the third finishes every file."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.end_to_end.histories import check_complete, completed, numbers_of, of_type, streams_of
from tests.end_to_end.uploader import Uploader, ask
from tests.server_process import TIMEOUT, Cluster, open_machines, run_command
from tests.support import eventually

pytestmark = pytest.mark.timeout(400)  # whole processes start, several times

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NAMES = ("a.txt", "b.txt", "c.txt")


class Gate:
    """A service that an `http` step asks, and that answers when it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.asked: Counter[str] = Counter()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked[(await request.json())["data"]["upload"]] += 1
        await self.opened.wait()
        return web.json_response({"result": {"said": "yes"}})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Gate]:
        app = web.Application()
        app.router.add_post("/", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            yield self
        finally:
            self.opened.set()
            await runner.cleanup()

    def settings(self) -> dict[str, str]:
        options = {"url": self.url, "secret": SECRET}
        # Longer than the gate is shut, on a machine of any speed.
        step = {"processor": "http", "options": options, "timeout": 600.0}
        return {
            "pipelines": json.dumps({"default": {"steps": [step]}}),
            "allow_private_addresses": "true",
            "public_url": "http://127.0.0.1:9",  # no callback arrives
            "worker_concurrency": "1",
            "uploads_per_job": "1",
        }


async def test_a_killed_and_a_frozen_workers_attempts_are_done_by_another_and_the_zombie_is_refused(
    database_url: str, tmp_path: Path
) -> None:
    gate = Gate()
    async with gate.serving():
        with open_machines(database_url, tmp_path, **gate.settings()) as running:
            await asyncio.to_thread(start, running)
            api = running.processes["api"]
            headers = {"Authorization": f"Bearer {api.key}"}
            async with aiohttp.ClientSession(api.url, headers=headers) as client:
                await survive(running, client, gate)


def start(running: Cluster) -> None:
    running.serve("api", "api", "orchestrator")
    for number in "123":
        running.serve(f"worker-{number}", "worker")
    running.wait_until_ready()


async def survive(running: Cluster, client: aiohttp.ClientSession, gate: Gate) -> None:
    batch = await sent(client, NAMES)
    await eventually(lambda: len(gate.asked) == 3, TIMEOUT)
    holders = await eventually(lambda: holding(client), TIMEOUT)
    await shown_to_people(running, holders)
    killed, frozen, third = (running.with_pid(pid) for pid in holders)

    killed.end(signal.SIGKILL)
    frozen.send(signal.SIGSTOP)

    await eventually(lambda: abandoned(client, batch, {killed.pid, frozen.pid}), TIMEOUT)
    await eventually(lambda: silent(client, {killed.pid, frozen.pid}), TIMEOUT)
    gate.opened.set()
    view = await completed(client, batch)
    assert (view["outcome"], view["counts"]) == ("succeeded", {"completed": 3})

    # The zombie finds its answer, and the third is gone: what comes next can only be the zombie's.
    frozen.send(signal.SIGCONT)
    third.end()
    later = await sent(client, ("d.txt",))
    assert (await completed(client, later))["outcome"] == "succeeded"
    (done,) = of_type(await everything(client, later), "upload.attempt_started")
    assert f"-{frozen.pid}-" in done["by"]

    streams = await streams_of(client, batch)
    check_complete(streams, 3)
    for events in streams.values():
        lost = numbers_of(events, "upload.attempt_abandoned")
        ended = numbers_of(events, "upload.attempt_succeeded")
        assert not set(lost) & set(ended)


async def sent(client: aiohttp.ClientSession, names: tuple[str, ...]) -> str:
    """The batch that these files are in, all of them arrived."""
    started = await ask(client, "POST", "/v1/batches", {})
    batch = f"/v1/batches/{started['id']}"
    uploader = Uploader(client, [""], batch)
    for name in names:
        await uploader.send(name, name.encode())
    await ask(client, "POST", f"{batch}/seal")
    return batch


async def holding(client: aiohttp.ClientSession) -> list[int] | None:
    """The process ids of the three workers, once each is listed with the attempt it holds."""
    found = await ask(client, "GET", "/v1/workers")
    busy = {worker["id"] for worker in found["workers"] if len(worker["attempts"]) == 1}
    pids = [one["pid"] for one in found["processes"] if one["worker"] in busy]
    return pids if len(pids) == 3 else None


async def shown_to_people(running: Cluster, holders: list[int]) -> None:
    """`uptrail workers` shows every process with its roles, and what it holds."""
    api = running.processes["api"]
    known = {"UPTRAIL_URL": api.url, "UPTRAIL_KEY": api.key}
    printed = await asyncio.to_thread(lambda: run_command("workers", environment=known))
    assert printed.returncode == 0, printed.stderr
    for pid in holders:
        assert f"-{pid}-" in printed.stdout
    assert printed.stdout.count("1 attempts") == 3
    assert "api, orchestrator" in printed.stdout
    assert "leads" in printed.stdout


async def abandoned(client: aiohttp.ClientSession, batch: str, pids: set[int]) -> bool:
    """Return whether the attempts of these processes are recorded."""
    lost = of_type(await everything(client, batch), "upload.attempt_abandoned")
    return all(any(f"-{pid}-" in event["data"]["worker"] for event in lost) for pid in pids)


async def silent(client: aiohttp.ClientSession, pids: set[int]) -> bool:
    """Return whether exactly these processes are shown as such."""
    listed = await ask(client, "GET", "/v1/workers")
    return {one["pid"] for one in listed["processes"] if not one["alive"]} == pids


async def everything(client: aiohttp.ClientSession, batch: str) -> list[dict[str, Any]]:
    """All events of the batch and its uploads."""
    return [event for events in (await streams_of(client, batch)).values() for event in events]
