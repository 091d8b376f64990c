"""The feed as Server-Sent Events: the same frames, resumed by their ids."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser

from interfaces.feed.connection import FeedLimits
from interfaces.feed.protocol import CloseCode
from tests.builders import attempt, queued, received
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.interfaces.feed.stream import StreamViewer, streaming
from tests.interfaces.feed.test_convergence import agree, busy, moved
from tests.interfaces.feed.test_credential_renewal import ends_in
from tests.interfaces.web.browser import signed_in
from tests.late_projector import delay_projector
from tests.support import eventually

FAT = {f"note {number}": "word " * 45 for number in range(16)}


async def test_a_stream_has_the_same_messages_as_a_socket(feed: FeedHarness) -> None:
    batch, theirs, key = await feed.batch(), await feed.batch(owner="rival"), await feed.key()
    upload = await feed.upload(batch, "a.jpg")
    await feed.projected()
    names = [batch, theirs, "no-id"]
    query = f"?batches={','.join(map(str, names))}"
    async with streaming(feed, key, query) as stream, feed.viewer(key) as socket:
        await socket.subscribe(names)
        for viewer in (stream, socket):
            await viewer.until_frame("snapshot")
        assert stream.last_id == stream.cursor
        await feed.upload(theirs, "secret.txt", owner="rival")
        await feed.record(upload, received(), queued(), attempt())
        for viewer in (stream, socket):
            await viewer.until(lambda v: v.rows["attempts"])
        assert stream.rows == socket.rows
        assert stream.positions() == await feed.positions(batch)
        assert stream.last_id == stream.cursor
        assert "secret" not in str(stream.frames)
        kinds = [[f["type"] for f in v.frames[:4]] for v in (stream, socket)]
        assert kinds == [["welcome", "error", "error", "snapshot"]] * 2
        assert 1000 <= stream.retry < 3000


async def test_a_stream_with_latest_shows_no_rows_from_before_what_was_recorded(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay_projector(monkeypatch)

    async with open_feed(database_url, tmp_path) as feed:
        key, batch = await feed.key(), await feed.batch(label="new")
        query = f"?batches={batch}&min_position=latest"
        async with streaming(feed, key, query) as stream:
            snapshot = await stream.until_frame("snapshot")
            assert [row["label"] for row in snapshot["batches"]] == ["new"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.options(limits=FeedLimits(page_size=7), feed_tick=0.005)
async def test_a_stream_cut_and_resumed_again_and_again_misses_nothing(
    feed: FeedHarness, seed: int
) -> None:
    chance = random.Random(seed)
    batch, key = await feed.batch(), await feed.key()
    writing = asyncio.create_task(busy(feed, batch, 25, chance))
    before: StreamViewer | None = None
    snapshots = cuts = 0
    while not writing.done() or cuts < 5:
        headers = {"Last-Event-ID": before.last_id} if before and before.last_id else {}
        async with streaming(feed, key, f"?batches={batch}", **headers) as stream:
            if before is not None:
                stream.go_on_from(before)
            await stream.until(lambda v: v.position >= 0)
            for _ in range(chance.randrange(1, 8)):
                try:
                    await stream.frame(deadline=0.2)
                except TimeoutError:
                    break
        assert not stream.of_type("reset")
        snapshots += len([f for f in stream.of_type("snapshot") if f["part"] == 1])
        before, cuts = stream, cuts + 1
    await writing
    await feed.projected()
    assert before is not None
    headers = {"Last-Event-ID": before.last_id}
    async with streaming(feed, key, f"?batches={batch}", **headers) as last:
        last.go_on_from(before)
        await agree(feed, last, batch)
    assert snapshots == 1
    await eventually(lambda: not feed.hub.registry.clients)


async def test_last_event_id_counts_before_after_and_a_reset_forgets_it(feed: FeedHarness) -> None:
    batch, key = await feed.batch(), await feed.key()
    await feed.projected()
    async with streaming(feed, key) as stream:
        await stream.until_frame("snapshot")
    good = stream.last_id
    await feed.upload(batch, "a.jpg")
    query = f"?batches=*&after={good}"
    for headers in ({}, {"Last-Event-ID": good}):
        async with streaming(feed, key, query, **headers) as stream:
            await feed.batch()
            await stream.until_frame("changes")
            assert not stream.of_type("snapshot")
    async with streaming(feed, key, query, **{"Last-Event-ID": "rubbish"}) as stream:
        assert (await stream.until_frame("reset"))["reason"] == "unreadable"
        assert stream.last_id == ""
        await stream.until_frame("snapshot")
        assert stream.last_id == stream.cursor


@pytest.mark.options(feed_heartbeat=0.05)
async def test_heartbeats_are_comments_and_move_the_cursor(feed: FeedHarness) -> None:
    mine = await feed.batch()
    await feed.projected()
    async with streaming(feed, await feed.key(), f"?batches={mine}") as stream:
        await stream.until_frame("snapshot")
        await feed.batch(owner="rival")
        end = await feed.projected()
        await stream.until_position(end)
        assert stream.last_id.endswith(f":{end}")
        # Many heartbeats without a word from the client, and it is still there.
        await feed.upload(mine, "a.jpg")
        await stream.until(lambda v: v.rows["uploads"])
        assert not stream.of_type("ping")
        assert stream.comments > 0


@pytest.mark.options(feed_heartbeat=3600.0)
async def test_a_disconnected_client_is_forgotten_at_once(feed: FeedHarness) -> None:
    key, before = await feed.key(), len(asyncio.all_tasks())
    for number in range(10):
        async with streaming(feed, key) as stream:
            if number % 2:
                await stream.until_frame("snapshot")
    # No write would detect it: no tick, and no heartbeat for an hour.
    await eventually(lambda: not feed.hub.registry.clients)
    await eventually(lambda: len(asyncio.all_tasks()) <= before)


@pytest.mark.parametrize("reads_again", [True, False])
async def test_an_unread_stream_delays_no_other_and_is_bounded(
    database_url: str, tmp_path: Path, reads_again: bool
) -> None:
    limits = FeedLimits(close_timeout=0.1, drain_timeout=3600.0 if reads_again else 0.3)
    async with open_feed(
        database_url, tmp_path, limits, feed_buffer=10_000, feed_tick=0.01
    ) as feed:
        batch, key = await feed.batch(), await feed.key()
        ids = [await feed.upload(batch, f"{n:04}.jpg", metadata=FAT) for n in range(60)]
        await feed.projected()
        async with streaming(feed, key, f"?batches={batch}") as slow:
            await slow.until_frame("snapshot")
            connection = slow.response.connection
            assert connection is not None
            assert connection.transport is not None
            connection.transport.pause_reading()
            rounds, most = 0, 0
            while feed.hub.registry.clients and (feed.hub.registry.live or not reads_again):
                rounds += 1
                await asyncio.gather(*(feed.record(id, moved(rounds)) for id in ids))
                most = max([most, *(c.transport.buffered_bytes for c in feed.hub.registry.clients)])
            # Its bound, and one frame.
            assert most < 10_000 + 60 * 8_000
            if reads_again:
                connection.transport.resume_reading()
                await slow.until(
                    lambda v: all(r["received"] == rounds for r in v.rows["uploads"].values())
                )
                assert slow.positions() == await feed.positions(batch)


@pytest.mark.options(limits=FeedLimits(credential_check_interval=0.05, expiry_warning=600.0))
async def test_a_stream_ends_with_the_reason(feed: FeedHarness) -> None:
    key = await feed.key()
    async with (
        streaming(feed, key) as revoked,
        streaming(feed, await feed.key(**ends_in(300))) as ending,
    ):
        await revoked.until_frame("snapshot")
        await ending.until_frame("expiring")
        await feed.hub.keys.revoke(key.split("_")[1], owner=None)
        last = await revoked.ended()
        assert (last["type"], last["code"], last["again"]) == ("ended", 4501, False)
        closing = asyncio.create_task(feed.hub.close())
        last = await ending.ended()
        assert (last["type"], last["code"], last["again"]) == ("ended", 4000, True)
        await closing
    assert await _status(feed.address, await feed.key(), "") == 503


@pytest.mark.options(
    limits=FeedLimits(max_connections=1, max_batches=2), allowed_origins=("https://ok.example",)
)
async def test_a_stream_that_cannot_begin_is_refused_with_a_problem(feed: FeedHarness) -> None:
    url, key = feed.address, await feed.key()
    assert await _status(url, None, "") == 401
    assert await _status(url, None, "", Upgrade="websocket") == 426
    assert await _status(url, "up_x_y", "") == 401
    assert await _status(url, key, "?batch=*") == 400
    assert await _status(url, key, "?batches=a,b,c") == 400
    async with streaming(feed, key) as stream:
        await stream.until_frame("snapshot")
        assert await _status(url, key, "") == 429

    principal = await feed.hub.keys.authenticate(await feed.key())
    assert principal is not None
    cookie = {
        "Cookie": "uptrail_session=" + await feed.hub.keys.open_session(principal, lifetime=60)
    }
    assert await _status(url, None, "", **cookie, Origin="https://evil.example") == 403
    for origin in ({}, {"Origin": url}, {"Origin": "https://ok.example"}):
        async with streaming(feed, None, **cookie, **origin) as stream:
            await stream.until_frame("snapshot")
        await eventually(lambda: not feed.hub.registry.clients)


async def _status(url: str, key: str | None, query: str, **headers: str) -> int:
    sent = {"Accept": "text/event-stream", **headers}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    async with (
        aiohttp.ClientSession(url) as session,
        session.get(f"/v1/feed{query}", headers=sent) as answer,
    ):
        assert answer.content_type == "application/problem+json"
        return answer.status


IN_A_PAGE = """(batch) => {
  const seen = (window.seen = { types: [], opened: 0, position: -1, uploads: {} });
  const source = new EventSource(`/v1/feed?batches=${batch}`);
  source.onopen = () => seen.opened++;
  source.onmessage = ({ data }) => {
    const frame = JSON.parse(data);
    seen.types.push(frame.type);
    const fresh = frame.type === "snapshot"
      || (frame.type === "changes" && frame.from <= seen.position && seen.position < frame.to);
    if (!fresh) return;
    for (const row of frame.uploads) seen.uploads[row.path] = row.state;
    seen.position = frame.to ?? frame.position;
  };
}"""


async def test_a_browsers_event_source_goes_on_by_itself_where_it_was_sent_away(
    browser: Browser, feed: FeedHarness
) -> None:
    async with signed_in(browser, feed) as page:
        batch = await feed.batch(owner="default")
        await feed.projected()
        await page.goto(f"{feed.address}/favicon.ico")
        await page.evaluate(IN_A_PAGE, str(batch))
        await eventually(lambda: page.evaluate("seen.types.includes('snapshot')"))
        for client in tuple(feed.hub.registry.clients):
            client.close(CloseCode.RESTARTING, "as it does")
        await feed.upload(batch, "meanwhile.jpg", owner="default")
        back = "seen.opened === 2 && 'meanwhile.jpg' in seen.uploads"
        await eventually(lambda: page.evaluate(back))
        types = await page.evaluate("seen.types")
        assert types.count("snapshot") == 1
        assert "reset" not in types
