"""Sockets that misbehave, fall silent, lose their key or close are all cleaned up."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from interfaces.feed import keepalive
from interfaces.feed.connection import FeedLimits
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.support import eventually


async def test_closed_sockets_leave_nothing_behind(feed: FeedHarness) -> None:
    batch, key = await feed.batch(), await feed.key()
    before = len(asyncio.all_tasks())
    for round in range(3):
        async with AsyncExitStack() as sockets:
            for number in range(20):
                viewer = await sockets.enter_async_context(feed.viewer(key))
                await viewer.subscribe([batch] if number % 2 else "*")
                if number < 10 * round:
                    await viewer.until_frame("snapshot")
                if number % 3:
                    viewer.socket._response.close()  # gone without a farewell
    await eventually(lambda: not feed.hub.registry.clients)
    assert not feed.hub.registry.live
    assert feed.hub.registry.unauthenticated == 0
    await eventually(lambda: len(asyncio.all_tasks()) <= before)


async def test_a_key_in_the_first_message(feed: FeedHarness) -> None:
    batch = await feed.batch()
    await feed.projected()
    async with feed.viewer(None) as viewer:
        assert (await viewer.frame())["type"] == "authenticate"
        await viewer.say(type="authenticate", token=await feed.key())
        await viewer.subscribe("*")
        assert (await viewer.until_frame("welcome"))["owner"] == "acme"
        await viewer.until_frame("snapshot")
        assert list(viewer.rows["batches"]) == [str(batch)]


@pytest.mark.parametrize(
    "first",
    [
        '{"type":"authenticate","token":"up_nobody_0000"}',
        '{"type":"subscribe","batches":"*"}',
        "{",
        "",
    ],
)
@pytest.mark.options(limits=FeedLimits(authentication_timeout=0.2))
async def test_an_unauthenticated_socket_is_closed_for_good(feed: FeedHarness, first: str) -> None:
    async with feed.viewer(None) as viewer:
        if first:
            await viewer.socket.send_str(first)
        assert await viewer.closed() == 4500
        assert not feed.hub.registry.clients


@pytest.mark.options(limits=FeedLimits(max_unauthenticated=1))
async def test_only_so_many_sockets_wait_for_their_first_message(feed: FeedHarness) -> None:
    async with feed.viewer(None) as first:
        assert (await first.frame())["type"] == "authenticate"
        async with feed.viewer(None) as second:
            assert await second.closed() == 4003
        await first.say(type="authenticate", token=await feed.key())
        await first.until_frame("welcome")
        async with feed.viewer(None) as third:
            assert (await third.frame())["type"] == "authenticate"


@pytest.mark.options(allowed_origins=("https://ok.example",))
async def test_a_bad_key_and_a_foreign_page_get_no_socket(feed: FeedHarness) -> None:
    text = await feed.key()
    principal = await feed.hub.keys.authenticate(text)
    assert principal is not None
    token = await feed.hub.keys.open_session(principal, lifetime=60)
    cookie = {"Cookie": f"uptrail_session={token}"}

    async def status(headers: dict[str, str]) -> int:
        try:
            async with feed.viewer(None, headers=headers):
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status

    assert await status({"Authorization": "Bearer up_x_y"}) == 401
    assert await status({"Cookie": "uptrail_session=stale"}) == 401
    assert await status({**cookie, "Origin": "https://evil.example"}) == 403
    assert await status(cookie) == 403
    assert await status({**cookie, "Origin": feed.address}) == 101
    assert await status({**cookie, "Origin": "https://ok.example"}) == 101


@pytest.mark.parametrize(
    ("allowed", "origin", "expected"),
    [
        ((), "https://evil.example", 403),
        ((), "null", 403),
        ((), "", 101),
        (("https://ok.example",), "https://evil.example", 403),
        (("https://ok.example",), "https://ok.example", 101),
        (("*",), "https://any.example", 101),
    ],
)
async def test_a_foreign_page_with_a_key_listens_only_where_it_may_ask(
    database_url: str, tmp_path: Path, allowed: tuple[str, ...], origin: str, expected: int
) -> None:
    async with open_feed(database_url, tmp_path, allowed_origins=allowed) as feed:
        try:
            async with feed.viewer(None, headers={"Origin": origin or feed.address}) as viewer:
                assert (await viewer.frame())["type"] == "authenticate"
                status = 101
        except aiohttp.WSServerHandshakeError as error:
            status = error.status
        assert status == expected


@pytest.mark.options(limits=FeedLimits(credential_check_interval=0.05))
async def test_a_revoked_key_and_an_ended_session_lose_their_sockets(feed: FeedHarness) -> None:
    text, other = await feed.key(), await feed.key()
    principal = await feed.hub.keys.authenticate(other)
    assert principal is not None
    token = await feed.hub.keys.open_session(principal, lifetime=60)
    headers = {"Cookie": f"uptrail_session={token}", "Origin": feed.address}
    async with (
        feed.viewer(text) as by_key,
        feed.viewer(None, headers=headers) as by_session,
        feed.viewer(other) as stays,
    ):
        await feed.hub.keys.revoke(text.split("_")[1], owner=None)
        assert await by_key.closed() == 4501
        await feed.hub.keys.close_session(token)
        assert await by_session.closed() == 4501
        await stays.say(type="ping")
        await stays.until_frame("pong")


NONSENSE: list[str | bytes] = [
    b"\x00\xff",
    b'{"type":"ping"}',
    "{",
    "[]",
    "null",
    '{"type":"dance"}',
    '{"type":"subscribe"}',
    '{"type":"subscribe","batches":7}',
    '{"type":"subscribe","batches":"all"}',
    '{"type":"subscribe","batches":"*","after":{}}',
    '{"type":"subscribe","batches":"*","extra":1}',
    '{"type":"subscribe","batches":[' + ",".join(['"x"'] * 300) + "]}",
    '{"type":"ping","x":"' + "y" * 20_000 + '"}',
    "[" * 5000,
    '"\\ud800"',
]


@pytest.mark.parametrize("said", NONSENSE, ids=range(len(NONSENSE)))
async def test_an_invalid_message_is_answered_and_the_socket_stays_open(
    feed: FeedHarness, said: str | bytes
) -> None:
    async with feed.viewer(await feed.key()) as viewer:
        if isinstance(said, bytes):
            await viewer.socket.send_bytes(said)
        else:
            await viewer.socket.send_str(said)
        await viewer.say(type="ping")
        first = await viewer.until_frame("error")
        await viewer.until_frame("pong")
        assert first["message"]


async def test_too_many_invalid_messages_close_the_socket_for_good(feed: FeedHarness) -> None:
    async with feed.viewer(await feed.key()) as viewer:
        for _ in range(20):
            await viewer.socket.send_str("{")
        assert await viewer.closed() == 4502


@pytest.mark.options(limits=FeedLimits(subscribe_burst=3, subscribe_rate=0.001))
async def test_subscriptions_above_the_rate_limit_are_refused(feed: FeedHarness) -> None:
    async with feed.viewer(await feed.key()) as viewer:
        for _ in range(4):
            await viewer.subscribe("*")
        assert (await viewer.until_frame("error"))["code"] == "too_often"


@pytest.mark.options(limits=FeedLimits(max_connections=2))
async def test_a_principal_has_so_many_sockets(feed: FeedHarness) -> None:
    key = await feed.key()
    async with feed.viewer(key) as one, feed.viewer(key) as two:
        for viewer in (one, two):
            await viewer.until_frame("welcome")
        async with feed.viewer(key) as third:
            assert await third.closed() == 4503
        async with feed.viewer(await feed.key()) as other:
            await other.until_frame("welcome")


@pytest.mark.options(feed_heartbeat=0.05)
async def test_heartbeats_move_the_cursor_of_a_quiet_client(
    feed: FeedHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        keepalive, "MAX_MISSED_HEARTBEATS", 10_000.0
    )  # a slow machine is not a fault

    mine = await feed.batch()
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([mine])
        await viewer.until_frame("snapshot")
        end = (await feed.log.append(_elsewhere())).position
        await viewer.until_position(end)
        assert viewer.positions() == await feed.positions(mine)
        await viewer.until_frame("ping")


def _elsewhere() -> Any:
    from uuid import uuid4

    from application.append import append_to_stream
    from tests.builders import started

    return append_to_stream(uuid4(), 0, started(owner="rival"))


@pytest.mark.options(limits=FeedLimits(close_timeout=0.1), feed_heartbeat=0.05)
async def test_a_silent_peer_is_disconnected(feed: FeedHarness) -> None:
    async with feed.viewer(await feed.key(), autoping=False) as viewer:
        assert await viewer.closed() == 4002
        await eventually(lambda: not feed.hub.registry.clients)


async def test_a_server_that_stops_asks_to_connect_again(feed: FeedHarness) -> None:
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe("*")
        await viewer.until_frame("snapshot")
        closing = asyncio.create_task(feed.hub.close())
        assert await viewer.closed() == 4000
        await closing
    async with feed.viewer(await feed.key()) as late:
        assert await late.closed() == 4000


async def test_an_invalid_upgrade_or_subprotocol_gets_a_problem(feed: FeedHarness) -> None:
    headers = {"Authorization": f"Bearer {await feed.key()}"}
    async with aiohttp.ClientSession(feed.address, headers=headers) as session:
        async with session.get("/v1/feed") as plain:
            assert plain.status == 426
            assert plain.content_type == "application/problem+json"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect("/v1/feed", protocols=("morse",))
        assert refused.value.status == 400
