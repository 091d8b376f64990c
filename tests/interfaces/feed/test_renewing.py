"""A credential that ends: its holder is warned, and may go on with another where it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from application.ports.auth import Scope
from interfaces.feed.connection import FeedLimits
from tests.interfaces.feed.harness import FeedHarness, open_feed
from tests.interfaces.feed.ws_client import FeedClient

SOON = FeedLimits(credential_check_interval=0.05, expiry_warning=600.0)


def ends_in(seconds: float) -> dict[str, Any]:
    return {"expires_at": datetime.now(UTC) + timedelta(seconds=seconds)}


async def test_a_key_that_ends_soon_is_announced_once_and_replaced_without_a_gap(
    database_url: str, tmp_path: Path
) -> None:
    async with open_feed(database_url, tmp_path, SOON) as on:
        batch = await on.batch()
        await on.projected()
        ending = ends_in(300)
        async with on.viewer(await on.key(**ending)) as viewer:
            assert "expires_at" in (await viewer.until_frame("welcome"))
            await viewer.subscribe([batch])
            warning = await viewer.until_frame("expiring")
            assert 0 < warning["within"] <= 300
            assert datetime.fromisoformat(warning["expires_at"]) == ending["expires_at"]

            next_key = await on.key()
            await viewer.say(type="authenticate", token=next_key)
            welcome = await viewer.until_frame("welcome")
            assert "expires_at" not in welcome
            assert welcome["principal"] == f"key:{next_key.split('_')[1]}"
            await _revoke_all_but(on, next_key)

            seen = await on.upload(batch, "a.jpg")
            await viewer.until(lambda v: str(seen) in v.rows["uploads"])
            await on.projected()
            assert viewer.positions() == await on.positions(batch)
            assert len(viewer.of_type("snapshot")) == 1
            assert len(viewer.of_type("expiring")) == 1

            await on.hub.keys.revoke(next_key.split("_")[1], owner=None)
            assert await viewer.closed() == 4501


async def test_a_key_that_is_over_ends_its_socket(database_url: str, tmp_path: Path) -> None:
    async with (
        open_feed(database_url, tmp_path, SOON) as on,
        on.viewer(await on.key(**ends_in(4))) as viewer,
    ):
        assert await viewer.closed() == 4501
        assert len(viewer.of_type("expiring")) == 1


async def test_a_session_that_ends_soon_is_announced(database_url: str, tmp_path: Path) -> None:
    async with open_feed(database_url, tmp_path, SOON) as on:
        principal = await on.hub.keys.authenticate(await on.key())
        assert principal is not None
        token = await on.hub.keys.open_session(principal, lifetime=300)
        headers = {"Cookie": f"uptrail_session={token}", "Origin": on.address}
        async with on.viewer(None, headers=headers) as viewer:
            assert 0 < (await viewer.until_frame("expiring"))["within"] <= 300


@pytest.mark.parametrize(
    ("owner", "scope"), [("rival", Scope.VIEWER), ("acme", Scope.ADMIN), ("rival", Scope.ADMIN)]
)
async def test_a_key_that_sees_something_else_is_refused_and_the_one_before_goes_on(
    database_url: str, tmp_path: Path, owner: str, scope: Scope
) -> None:
    async with open_feed(database_url, tmp_path, SOON) as on:
        mine, theirs = await on.batch(), await on.batch(owner="rival")
        await on.projected()
        async with on.viewer(await on.key()) as viewer:
            await viewer.subscribe([mine, theirs])
            await viewer.until_frame("snapshot")
            assert await _refused(viewer, await on.key(owner, scope)) == "other_view"
            await on.upload(theirs, "secret.txt", owner="rival")
            seen = await on.upload(mine, "plain.txt")
            await viewer.until(lambda v: v.rows["uploads"])
            assert list(viewer.rows["uploads"]) == [str(seen)]
            assert list(viewer.rows["batches"]) == [str(mine)]


async def test_a_key_limited_to_a_batch_is_replaced_by_one_for_that_batch_only(
    database_url: str, tmp_path: Path
) -> None:
    async with open_feed(database_url, tmp_path) as on:
        one, two = await on.batch(), await on.batch()

        async def limited(batch: Any) -> str:
            return await on.key(scope=Scope.UPLOADER, batch=batch)

        async with on.viewer(await limited(one)) as viewer:
            assert await _refused(viewer, await limited(two)) == "other_view"
            assert await _refused(viewer, await on.key()) == "other_view"
            await viewer.say(type="authenticate", token=await limited(one))
            await viewer.until_frame("welcome")


async def test_a_key_that_does_not_hold_changes_nothing_and_too_many_end_the_socket(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        open_feed(database_url, tmp_path) as on,
        on.viewer(await on.key()) as viewer,
    ):
        revoked = await on.key()
        await on.hub.keys.revoke(revoked.split("_")[1], owner=None)
        for token in (revoked, "up_nobody_0000", ""):
            assert await _refused(viewer, token) == "key_refused"
        await viewer.say(type="ping")
        await viewer.until_frame("pong")
        for _ in range(10):
            await viewer.say(type="authenticate", token=revoked)
        assert await viewer.closed() == 4502


async def test_a_key_with_too_many_sockets_takes_over_no_more(
    database_url: str, tmp_path: Path
) -> None:
    async with open_feed(database_url, tmp_path, FeedLimits(max_connections=1)) as on:
        full = await on.key()
        async with on.viewer(full) as first, on.viewer(await on.key()) as second:
            for viewer in (first, second):
                await viewer.until_frame("welcome")
            assert await _refused(second, full) == "too_many"
            await first.say(type="authenticate", token=full)  # its own place is not taken twice
            await first.until_frame("welcome")


async def test_without_a_database_a_new_key_is_neither_taken_nor_held_against_the_client(
    database_url: str, tmp_path: Path
) -> None:
    async with open_feed(database_url, tmp_path, FeedLimits(authentication_timeout=600.0)) as on:
        next_key = await on.key()
        async with on.viewer(await on.key()) as viewer, on.viewer(None) as stranger:
            await viewer.until_frame("welcome")
            await stranger.until_frame("authenticate")
            await on.parts.pool.close()
            for _ in range(12):
                assert await _refused(viewer, next_key) == "unavailable"
            await stranger.say(type="authenticate", token=next_key)
            assert await stranger.closed() == 4003


async def _refused(viewer: FeedClient, token: str) -> str:
    await viewer.say(type="authenticate", token=token)
    return str((await viewer.until_frame("error"))["code"])


async def _revoke_all_but(on: FeedHarness, kept: str) -> None:
    for key in await on.hub.keys.all(owner="acme"):
        if key.id != kept.split("_")[1]:
            await on.hub.keys.revoke(key.id, owner=None)
