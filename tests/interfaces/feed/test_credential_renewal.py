"""Expiring credentials: the client is warned and may renew without losing its position."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from application.ports.auth import Scope
from interfaces.feed.connection import FeedLimits
from tests.end_to_end.test_seams import Gate
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.feed.ws_client import FeedClient

SOON = FeedLimits(credential_check_interval=0.05, expiry_warning=600.0)


def ends_in(seconds: float) -> dict[str, Any]:
    return {"expires_at": datetime.now(UTC) + timedelta(seconds=seconds)}


@pytest.mark.options(limits=SOON)
async def test_a_key_that_ends_soon_is_announced_once_and_replaced_without_a_gap(
    feed: FeedHarness,
) -> None:
    batch = await feed.batch()
    await feed.projected()
    ending = ends_in(300)
    async with feed.viewer(await feed.key(**ending)) as viewer:
        assert "expires_at" in (await viewer.until_frame("welcome"))
        await viewer.subscribe([batch])
        warning = await viewer.until_frame("expiring")
        assert 0 < warning["within"] <= 300
        assert datetime.fromisoformat(warning["expires_at"]) == ending["expires_at"]

        next_key = await feed.key()
        await viewer.say(type="authenticate", token=next_key)
        welcome = await viewer.until_frame("welcome")
        assert "expires_at" not in welcome
        assert welcome["principal"] == f"key:{next_key.split('_')[1]}"
        await _revoke_all_but(feed, next_key)

        seen = await feed.upload(batch, "a.jpg")
        await viewer.until(lambda v: str(seen) in v.rows["uploads"])
        await feed.projected()
        assert viewer.positions() == await feed.positions(batch)
        assert len(viewer.of_type("snapshot")) == 1
        assert len(viewer.of_type("expiring")) == 1

        await feed.hub.keys.revoke(next_key.split("_")[1], owner=None)
        assert await viewer.closed() == 4501


@pytest.mark.options(limits=SOON)
async def test_a_key_that_is_over_ends_its_socket(feed: FeedHarness) -> None:
    async with feed.viewer(await feed.key(**ends_in(4))) as viewer:
        assert await viewer.closed() == 4501
        assert len(viewer.of_type("expiring")) == 1


@pytest.mark.options(limits=SOON)
async def test_a_key_whose_scope_changes_loses_its_socket(feed: FeedHarness) -> None:
    async with feed.viewer(await feed.key(scope=Scope.OPERATOR)) as viewer:
        await viewer.until_frame("welcome")
        await feed.rows("UPDATE api_keys SET scope = 'viewer' RETURNING id")
        assert await viewer.closed() == 4501


@pytest.mark.options(limits=SOON)
async def test_a_key_replaced_during_its_check_does_not_end_the_socket(
    feed: FeedHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, old, new = await feed.batch(), await feed.key(), await feed.key()
    await feed.projected()
    async with feed.viewer(old) as viewer:
        await viewer.subscribe([batch])
        await viewer.until_frame("snapshot")
        gate = Gate(monkeypatch, feed.hub.keys, "authenticate")
        await gate.reached()  # by the check of the old key
        await viewer.say(type="authenticate", token=new)
        await viewer.until_frame("welcome")
        await feed.hub.keys.revoke(old.split("_")[1], owner=None)
        gate.open()

        seen = await feed.upload(batch, "a.jpg")
        await viewer.until(lambda v: str(seen) in v.rows["uploads"])
        await viewer.say(type="ping")
        await viewer.until_frame("pong")


@pytest.mark.options(limits=SOON)
async def test_a_session_that_ends_soon_is_announced(feed: FeedHarness) -> None:
    principal = await feed.hub.keys.authenticate(await feed.key())
    assert principal is not None
    token = await feed.hub.keys.open_session(principal, lifetime=300)
    headers = {"Cookie": f"uptrail_session={token}", "Origin": feed.address}
    async with feed.viewer(None, headers=headers) as viewer:
        assert 0 < (await viewer.until_frame("expiring"))["within"] <= 300


@pytest.mark.parametrize(
    ("owner", "scope"), [("rival", Scope.VIEWER), ("acme", Scope.ADMIN), ("rival", Scope.ADMIN)]
)
@pytest.mark.options(limits=SOON)
async def test_a_key_that_sees_something_else_is_refused_and_the_one_before_goes_on(
    feed: FeedHarness, owner: str, scope: Scope
) -> None:
    mine, theirs = await feed.batch(), await feed.batch(owner="rival")
    await feed.projected()
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.subscribe([mine, theirs])
        await viewer.until_frame("snapshot")
        assert await _refused(viewer, await feed.key(owner, scope)) == "other_view"
        await feed.upload(theirs, "secret.txt", owner="rival")
        seen = await feed.upload(mine, "plain.txt")
        await viewer.until(lambda v: v.rows["uploads"])
        assert list(viewer.rows["uploads"]) == [str(seen)]
        assert list(viewer.rows["batches"]) == [str(mine)]


async def test_a_key_limited_to_a_batch_is_replaced_by_one_for_that_batch_only(
    feed: FeedHarness,
) -> None:
    one, two = await feed.batch(), await feed.batch()

    async def limited(batch: Any) -> str:
        return await feed.key(scope=Scope.UPLOADER, batch=batch)

    async with feed.viewer(await limited(one)) as viewer:
        assert await _refused(viewer, await limited(two)) == "other_view"
        assert await _refused(viewer, await feed.key()) == "other_view"
        await viewer.say(type="authenticate", token=await limited(one))
        await viewer.until_frame("welcome")


async def test_a_key_that_does_not_hold_changes_nothing_and_too_many_end_the_socket(
    feed: FeedHarness,
) -> None:
    async with feed.viewer(await feed.key()) as viewer:
        revoked = await feed.key()
        await feed.hub.keys.revoke(revoked.split("_")[1], owner=None)
        for token in (revoked, "up_nobody_0000", ""):
            assert await _refused(viewer, token) == "key_refused"
        await viewer.say(type="ping")
        await viewer.until_frame("pong")
        for _ in range(10):
            await viewer.say(type="authenticate", token=revoked)
        assert await viewer.closed() == 4502


@pytest.mark.options(limits=FeedLimits(max_connections=1))
async def test_a_key_with_too_many_sockets_takes_over_no_more(feed: FeedHarness) -> None:
    full = await feed.key()
    async with feed.viewer(full) as first, feed.viewer(await feed.key()) as second:
        for viewer in (first, second):
            await viewer.until_frame("welcome")
        assert await _refused(second, full) == "too_many"
        await first.say(type="authenticate", token=full)  # its own place is not taken twice
        await first.until_frame("welcome")


@pytest.mark.options(limits=FeedLimits(authentication_timeout=600.0))
async def test_without_a_database_a_new_key_is_neither_taken_nor_held_against_the_client(
    feed: FeedHarness,
) -> None:
    next_key = await feed.key()
    async with feed.viewer(await feed.key()) as viewer, feed.viewer(None) as stranger:
        await viewer.until_frame("welcome")
        await stranger.until_frame("authenticate")
        await feed.parts.pool.close()
        for _ in range(12):
            assert await _refused(viewer, next_key) == "unavailable"
        await stranger.say(type="authenticate", token=next_key)
        assert await stranger.closed() == 4003


async def _refused(viewer: FeedClient, token: str) -> str:
    await viewer.say(type="authenticate", token=token)
    return str((await viewer.until_frame("error"))["code"])


async def _revoke_all_but(feed: FeedHarness, kept: str) -> None:
    for key in await feed.hub.keys.all(owner="acme"):
        if key.id != kept.split("_")[1]:
            await feed.hub.keys.revoke(key.id, owner=None)
