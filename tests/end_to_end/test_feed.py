"""
The fault: progress was published to whoever listened at that moment. A message sent while a
client was away was gone, one client that did not read held up all others, and sockets that were
closed stayed in a list for ever.

Here a client has a cursor, a snapshot and a replay, and the server keeps little for each of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]
import pytest

from tests.api_client import Client
from tests.end_to_end.conftest import MakeCluster
from tests.interfaces.feed.ws_client import FeedClient
from tests.server_process import Cluster, steps
from tests.support import eventually

SETTINGS = {
    "pipelines": {"default": steps("checksum")},
    "feed_tick": 0.02,
    "feed_buffer": 64 * 1024,
    "feed_heartbeat": 600,
}
FULL = 10 * 1024 * 1024  # bytes, which no narrow line holds: the system gives one 4 MiB at most
FAT = {f"note {number}": "word " * 45 for number in range(16)}


async def test_a_message_missed_while_away_is_never_lost(
    make_cluster: MakeCluster,
) -> None:
    """The client is away, the server is killed and comes back, and both have missed something."""

    cluster = make_cluster(**SETTINGS)
    server = await asyncio.to_thread(cluster.start)
    client = cluster.admin
    batch = await asyncio.to_thread(start_and_send, client, range(5))
    async with viewing(cluster) as viewer:
        await viewer.subscribe([batch])
        await viewer.until(lambda seen: len(seen.rows["uploads"]) == 5)
        viewer.socket._response.close()  # gone without a farewell
    cursor = viewer.cursor

    await asyncio.to_thread(send, client, batch, range(5, 10))
    cluster.kill(server)
    await asyncio.to_thread(cluster.start)
    await asyncio.to_thread(send, client, batch, range(10, 15))
    await asyncio.to_thread(client.post, f"/v1/batches/{batch}/seal")

    async with viewing(cluster) as back:
        back.go_on_from(viewer)
        await back.subscribe([batch], after=cursor)
        await back.until(lambda seen: outcome(seen, batch) == "succeeded")
        assert not back.of_type("snapshot")  # it went on from where it was
        assert not back.of_type("reset")
    await shows_what_is(cluster, back, batch)


@pytest.mark.parametrize("cursor", ["nonsense", "other-epoch:3", "", "0:0", "1:99999999999999"])
async def test_a_cursor_that_cannot_be_resumed_is_never_met_with_silence(
    cluster: Cluster, cursor: str
) -> None:
    batch = await asyncio.to_thread(start_and_send, cluster.admin, range(3))
    async with viewing(cluster) as viewer:
        await viewer.subscribe([batch], after=cursor)
        assert (await viewer.until_frame("reset"))["reason"]
        await viewer.until(lambda seen: len(seen.rows["uploads"]) == 3)
        assert viewer.of_type("snapshot")


async def test_a_slow_reader_never_stalls_the_others(cluster: Cluster) -> None:
    client = cluster.admin
    batch = await asyncio.to_thread(start_and_send, client, ())
    async with viewing(cluster, narrow=True) as slow, viewing(cluster) as quick:
        for viewer in (slow, quick):
            await viewer.subscribe([batch])
            await viewer.until_frame("snapshot")
        await asyncio.to_thread(add, client, batch, range(1500), FAT)
        await quick.until(lambda seen: len(seen.rows["uploads"]) == 1500)
        await asyncio.to_thread(send, client, batch, range(20))
        await quick.until(lambda seen: states(seen).count("completed") == 20)
        await asyncio.to_thread(client.post, f"/v1/batches/{batch}/cancel")
        await quick.until(lambda seen: outcome(seen, batch) == "cancelled")

        assert changes_seen(quick) > FULL, "too little for the slow reader to be in anybody's way"

        # It reads at last, and nothing is missing.
        await slow.until(lambda seen: outcome(seen, batch) == "cancelled")
        await shows_what_is(cluster, quick, batch)
        await shows_what_is(cluster, slow, batch)


async def test_a_closed_socket_never_leaks(cluster: Cluster) -> None:
    batch = await asyncio.to_thread(start_and_send, cluster.admin, range(3))
    (server,) = cluster.running()
    before = sockets(server)
    for changes_seen in range(3):
        for number in range(20):
            async with viewing(cluster) as viewer:
                await viewer.subscribe([batch] if number % 2 else "*")
                if changes_seen:
                    await viewer.until_frame("snapshot")
                if number % 3:
                    viewer.socket._response.close()  # gone without a farewell
    await eventually(lambda: sockets(server) <= before)


@asynccontextmanager
async def viewing(cluster: Cluster, *, narrow: bool = False) -> AsyncIterator[FeedClient]:
    """Client of the feed; with `narrow`, few bytes are in flight."""
    headers = {"Authorization": f"Bearer {cluster.key}"}
    connector = aiohttp.TCPConnector(socket_factory=_narrow if narrow else None)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        connected = await session.ws_connect(f"{cluster.url}/v1/feed", max_msg_size=0)
        try:
            yield FeedClient(connected)
        finally:
            with suppress(ConnectionError, aiohttp.ClientError):
                await connected.close()


def _narrow(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    line = socket.socket(family, kind, protocol)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024)
    return line


def start_and_send(client: Client, numbers: Iterable[int]) -> str:
    batch: str = client.post("/v1/batches", {})["id"]
    send(client, batch, numbers)
    return batch


def send(client: Client, batch: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        client.send(batch, f"{number}.txt", b"x")


def add(client: Client, batch: str, numbers: Iterable[int], metadata: dict[str, str]) -> None:
    """Announces files whose rows are large."""
    files = [{"path": f"{number}.txt", "size": 1, "metadata": metadata} for number in numbers]
    client.post(f"/v1/batches/{batch}/uploads", files)


def outcome(viewer: FeedClient, batch: str) -> Any:
    return viewer.rows["batches"].get(batch, {}).get("outcome")


def changes_seen(viewer: FeedClient) -> int:
    """Bytes of all frames."""
    return sum(frame["size"] for frame in viewer.frames)


def states(viewer: FeedClient) -> list[str]:
    return [row["state"] for row in viewer.rows["uploads"].values()]


def sockets(process: psutil.Process) -> int:
    return len(process.net_connections("tcp"))


async def shows_what_is(cluster: Cluster, viewer: FeedClient, batch: str) -> None:
    """The client has put together exactly what the API tells."""
    rows = await asyncio.to_thread(cluster.admin.uploads, batch)
    assert viewer.rows["uploads"] == {row["id"]: row for row in rows.values()}
    assert viewer.rows["batches"][batch] == await asyncio.to_thread(cluster.admin.batch, batch)
    for row in rows.values():
        if not row["attempt"]:
            continue
        page = await asyncio.to_thread(cluster.admin.get, f"/v1/uploads/{row['id']}/attempts")
        for attempt in page["items"]:
            assert viewer.rows["attempts"][attempt["upload"], attempt["number"]] == attempt
