"""Several processes on one port are one server, also when one of them dies."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest

from infrastructure.settings import Settings
from interfaces.cli.console import find_running_server
from tests.conftest import Databases
from tests.interfaces.feed.ws_client import FeedClient
from tests.interfaces.uploads.server import BYTES, TUS
from tests.server_process import open_server, wait_for
from tests.support import eventually, with_database

PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class ServerGroup:
    """A server of two answering processes, and one for the other roles."""

    url: str
    key: str
    parent: psutil.Process
    data_dir: Path

    @property
    def output(self) -> str:
        return (self.data_dir.parent / "server.out").read_text()

    @property
    def answering(self) -> list[psutil.Process]:
        """The processes that accept connections, in the order in which they were started."""
        port = int(self.url.rpartition(":")[2])
        return [
            child
            for child in self.parent.children()
            if any(c.status == "LISTEN" and c.laddr.port == port for c in child.net_connections())
        ]

    def holder(self, client: aiohttp.ClientResponse) -> int:
        """The id of the process that has the other end of this connection."""
        assert client.connection is not None
        assert client.connection.transport is not None
        ours = client.connection.transport.get_extra_info("sockname")[1]
        (holder,) = (
            child.pid
            for child in self.answering
            if any(c.raddr and c.raddr.port == ours for c in child.net_connections())
        )
        return holder


@pytest.fixture(scope="module")
def group(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerGroup]:
    name = databases.take()
    folder = tmp_path_factory.mktemp("group")
    with serving(with_database(databases.server_url, name), folder) as group:
        yield group
    databases.drop(name)


@contextmanager
def serving(database_url: str, folder: Path) -> Iterator[ServerGroup]:
    """A group, which is killed at the end if it still runs."""
    data_dir = folder / "data"
    data_dir.mkdir()
    options = ("--database-url", database_url, "--processes", "2")
    with open_server(*options, data_dir=data_dir) as server:
        running = find_running_server(data_dir)
        assert running is not None, server.output
        assert running.pid == server.pid
        yield ServerGroup(running.url, server.key, psutil.Process(server.pid), data_dir)


@asynccontextmanager
async def connections_to_both(
    group: ServerGroup, path: str = "/healthz", headers: dict[str, str] | None = None
) -> AsyncIterator[Sequence[tuple[aiohttp.ClientSession, aiohttp.ClientResponse]]]:
    """A session of one connection to each process, with the answer to one request on it."""
    held: dict[int, tuple[aiohttp.ClientSession, aiohttp.ClientResponse]] = {}
    async with AsyncExitStack() as stack:
        end = asyncio.get_running_loop().time() + PATIENCE
        while len(held) < 2:
            assert asyncio.get_running_loop().time() < end, "one process gets every connection"
            connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=PATIENCE)
            session = aiohttp.ClientSession(
                connector=connector,
                headers=headers or {"Authorization": f"Bearer {group.key}"},
                read_bufsize=1,
            )
            await stack.enter_async_context(session)
            # A streamed answer keeps its connection until it is read.
            answer = await session.get(f"{group.url}{path}")
            held.setdefault(group.holder(answer), (session, answer))
            await answer.read()
        yield list(held.values())


def test_several_processes_share_one_ready_line_one_login_link_and_one_file(
    group: ServerGroup,
) -> None:
    wait_for(lambda: "sign in" in group.output)

    assert group.output.count("Uptrail is ready: api, orchestrator, worker.") == 1
    (link,) = re.findall(r"(\S+)/login\?code=", group.output)
    assert link == group.url
    assert len(group.answering) == 2
    assert len(group.parent.children()) == 3


def test_a_file_goes_all_the_way_through(group: ServerGroup, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    command = [sys.executable, "-m", "interfaces.cli.main", "upload", str(tmp_path), "--wait"]
    sent = subprocess.run(
        [*command, "--data-dir", str(group.data_dir)], capture_output=True, text=True, check=False
    )

    assert sent.returncode == 0, sent.stdout + sent.stderr


async def test_metrics_of_both_processes_are_added_up_at_either(group: ServerGroup) -> None:
    async with connections_to_both(group) as (one, other):
        for session, _ in (one, other):
            for _ in range(3):
                (await session.get(f"{group.url}/v1/keys")).release()
        texts = [
            await (await session.get(f"{group.url}/metrics")).text() for session, _ in (one, other)
        ]

    counted = 'uptrail_http_requests_total{method="GET",route="/v1/keys",status="200"} 6.0'
    assert all(counted in text for text in texts), texts
    assert all("uptrail_http_requests_under_way 1.0" in text for text in texts)
    assert all(text.count("\nuptrail_log_head ") == 1 for text in texts)


async def text(session: aiohttp.ClientSession, url: str) -> str:
    """Return the body of a successful response on a connection of its own."""
    async with session.get(url, headers={"Connection": "close"}) as answer:
        assert answer.status == 200
        return await answer.text()


async def test_a_browser_is_signed_in_with_both(group: ServerGroup) -> None:
    wait_for(lambda: "sign in" in group.output)

    code = re.search(r"/login\?code=\S+", group.output)
    assert code is not None
    async with (
        aiohttp.ClientSession() as browser,
        browser.get(group.url + code[0], allow_redirects=False) as answer,
    ):
        assert answer.status == 303
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
    signed_in = {"Cookie": cookie}
    async with connections_to_both(group, "/v1/batches", signed_in) as both:
        assert [answer.status for _, answer in both] == [200, 200]


async def test_a_change_reaches_the_watchers_of_both(group: ServerGroup) -> None:
    async with AsyncExitStack() as stack, connections_to_both(group) as both:
        viewers = []
        for session, _ in both:
            socket = await stack.enter_async_context(session.ws_connect(f"{group.url}/v1/feed"))
            viewers.append(FeedClient(socket))
            await viewers[-1].subscribe()
            await viewers[-1].until_frame("snapshot")
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {group.key}"}) as client,
            client.post(f"{group.url}/v1/batches", json={"label": "seen"}) as answer,
        ):
            id = (await answer.json())["id"]
        for viewer in viewers:
            await viewer.until(lambda v: id in map(str, v.rows["batches"]))


async def test_location_is_below_the_host_of_the_request_in_every_process(
    group: ServerGroup,
) -> None:
    async with connections_to_both(group) as both:
        for client, _ in both:
            named = {**TUS, "Upload-Length": "9", "Host": "up.example"}
            async with client.post(f"{group.url}/v1/uploads", headers=named) as created:
                assert created.headers["Location"].startswith("http://up.example/v1/uploads/")


async def test_the_newest_request_wins_when_it_lands_on_the_other_process(
    group: ServerGroup,
) -> None:
    async with connections_to_both(group) as ((here, _), (there, _)):
        named = {**TUS, "Upload-Length": "9"}
        async with here.post(f"{group.url}/v1/uploads", headers=named) as created:
            location = created.headers["Location"]
        silence, sent = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"stuck"
            sent.set()
            await silence.wait()

        async def patch() -> int:
            headers = {**BYTES, "Upload-Offset": "0"}
            async with here.patch(location, headers=headers, data=body()) as answer:
                return answer.status

        stuck = asyncio.create_task(patch())
        await sent.wait()
        stored = f"uploads_{location.rpartition('/')[2]}"
        await eventually(
            lambda: [file.stat().st_size for file in group.data_dir.rglob(stored)] == [5]
        )
        async with there.head(location, headers=TUS) as answer:
            assert answer.headers["Upload-Offset"] == "5"
        assert await stuck == 423
        silence.set()


def test_an_address_that_other_processes_share_is_taken(
    group: ServerGroup, settings: Settings
) -> None:
    port = group.url.rpartition(":")[2]
    options = ["--port", port, "--processes", "2", "--data-dir", str(settings.data_dir)]
    command = [sys.executable, "-m", "interfaces.cli.main", "serve", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)

    assert ended.returncode == 1
    assert "cannot listen on 127.0.0.1" in ended.stderr


async def test_a_process_that_dies_is_reported_and_restarted_while_the_other_answers(
    group: ServerGroup,
) -> None:
    one, other = group.answering

    one.kill()

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {group.key}"}) as client:
        for _ in range(20):
            async with client.get(f"{group.url}/v1/batches", headers={"Connection": "close"}) as a:
                assert a.status == 200
        await eventually(lambda: len(group.answering) == 2, PATIENCE)
        async with connections_to_both(group):
            measured = await text(client, f"{group.url}/metrics")
            assert "uptrail_http_requests_under_way 1.0" in measured
    assert {child.pid for child in group.answering} > {other.pid}
    assert '"event": "part_died"' in group.output
    assert f"process {one.pid} ended with signal 9" in group.output


def test_all_processes_end_in_order_on_sigterm(group: ServerGroup) -> None:
    members = group.parent.children()

    group.parent.send_signal(signal.SIGTERM)

    _, alive = psutil.wait_procs([group.parent, *members], timeout=PATIENCE)
    assert alive == []
    assert not (group.data_dir / "server.json").exists()
    assert group.output.count('"stopped"') == 4


def test_members_do_not_outlive_their_parent(database_url: str, tmp_path: Path) -> None:
    with serving(database_url, tmp_path) as group:
        members = group.parent.children()
        group.parent.kill()

        _, alive = psutil.wait_procs(members, timeout=PATIENCE)

        assert alive == []


def test_one_that_cannot_begin_ends_the_server_with_its_reason(
    settings: Settings, tmp_path: Path
) -> None:
    assert settings.database_url is not None
    in_the_way = tmp_path / "in-the-way"
    in_the_way.write_text("not a folder")
    command = [sys.executable, "-m", "interfaces.cli.main", "serve", "--port", "0"]
    options = ["--database-url", settings.database_url, "--blobs", str(in_the_way)]
    ended = subprocess.run(
        [*command, *options, "--processes", "2", "--data-dir", str(settings.data_dir)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert ended.returncode == 1
    assert "in-the-way" in ended.stderr
    assert re.search(
        r"uptrail: \S+ did not come up: process \d+ ended with exit code 1", ended.stderr
    )
    assert not (settings.data_dir / "server.json").exists()


def test_several_processes_need_the_api_role() -> None:
    command = [sys.executable, "-m", "interfaces.cli.main", "serve", "--role", "worker"]
    ended = subprocess.run(
        [*command, "--processes", "2"], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 2
    assert "--processes counts those that answer on the port" in ended.stderr
