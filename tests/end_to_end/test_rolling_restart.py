"""Every process is restarted during uploads and processing, without a failed request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.histories import check_complete, completed, numbers_of, of_type, streams_of
from tests.end_to_end.uploader import Uploader, ask
from tests.server_process import ServerProcess, open_machines

pytestmark = pytest.mark.timeout(400)  # whole processes start, several times

FILES = {f"{number}.bin": bytes([number]) * (number * 97 % 20_000) for number in range(200)}
SENDERS = 4


async def test_restarting_every_process_loses_nothing_fails_nothing_and_uses_up_no_attempt(
    database_url: str, tmp_path: Path
) -> None:
    with open_machines(database_url, tmp_path) as running:
        machines = [
            running.serve("front-1", "api"),
            running.serve("front-2", "api"),
            running.serve("back-1", "orchestrator", "worker"),
            running.serve("back-2", "orchestrator", "worker"),
        ]
        running.wait_until_ready()
        await restart_each_while_sending(machines)


async def restart_each_while_sending(machines: list[ServerProcess]) -> None:
    apis = machines[:2]
    headers = {"Authorization": f"Bearer {apis[0].key}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        started = await ask(client, "POST", f"{apis[0].url}/v1/batches", {})
        path = f"/v1/batches/{started['id']}"
        uploader = Uploader(client, [api.url for api in apis], path)
        restarted = asyncio.Event()
        sending = asyncio.create_task(send_all(uploader, restarted))

        for machine in machines:
            await asyncio.to_thread(machine.restart)
        restarted.set()
        await sending

        assert set(uploader.acknowledged) == set(FILES)
        batch = f"{apis[1].url}{path}"
        await ask(client, "POST", f"{batch}/seal")
        view = await completed(client, batch)
        assert (view["outcome"], view["counts"]) == ("succeeded", {"completed": len(FILES)})
        streams = await streams_of(client, batch)
        check_complete(streams, len(FILES))
        for events in streams.values():
            assert of_type(events, "upload.attempt_failed") == []
            given_back = numbers_of(events, "upload.attempt_abandoned")
            assert len(numbers_of(events, "upload.attempt_started")) in (0, 1 + len(given_back))
        for name, location in uploader.acknowledged.items():
            async with client.get(f"{apis[0].url}{location}/content") as answer:
                assert await answer.read() == FILES[name]


async def send_all(uploader: Uploader, restarted: asyncio.Event) -> None:
    """Spread over the restarts: the last files wait until all of them are over."""
    names = list(FILES)
    waiting = iter(names[:-SENDERS])

    async def sender() -> None:
        for name in waiting:
            await uploader.send(name, FILES[name])
            if not restarted.is_set():
                await asyncio.sleep(0.1)  # so that some are under way at every restart

    await asyncio.gather(*(sender() for _ in range(SENDERS)))
    await restarted.wait()
    await asyncio.gather(*(uploader.send(name, FILES[name]) for name in names[-SENDERS:]))
