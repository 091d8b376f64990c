"""Failed authentication is limited and logged; valid credentials are never locked out."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from application.ports.auth import Scope
from interfaces.common.failed_attempts import FailedAttempts, Rate, TooManyAttempts
from tests.interfaces.feed.harness import FeedHarness
from tests.interfaces.rest.server import Server, serving

BURST = 20  # failures of one address before it is limited, as documented


def wrong_key(id: str = "") -> str:
    return f"up_{id or secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"


async def fails() -> None:
    return None


async def holds() -> str:
    return "acme"


async def fail(attempts: FailedAttempts, address: str, key: str = "") -> float:
    """Return the Retry-After of a failed attempt; 0 for an attempt below the limit."""
    try:
        assert await attempts.authenticate(address, "key", key, fails) is None
    except TooManyAttempts as error:
        return error.retry_after
    return 0


async def use_up(server: Server, **options: Any) -> list[int]:
    """Return the statuses of the allowed number of wrong keys, and of two more."""
    return [
        (await server.get("/v1/batches", key=wrong_key(), **options)).status
        for _ in range(BURST + 2)
    ]


async def test_failures_are_limited_by_address_and_the_limit_recovers() -> None:
    now = 100.0
    attempts = FailedAttempts(lambda: now, per_address=Rate(3, 6.0))
    waits = [await fail(attempts, "192.0.2.1") for _ in range(6)]
    assert waits == [0, 0, 0, 6, 6, 6]
    assert await fail(attempts, "192.0.2.2") == 0
    now += 7
    assert [await fail(attempts, "192.0.2.1") for _ in range(2)] == [0, 5]
    now += 60
    assert [await fail(attempts, "192.0.2.1") for _ in range(4)] == [0, 0, 0, 6]


async def test_failures_with_one_key_id_are_limited_whatever_the_address() -> None:
    attempts = FailedAttempts(lambda: 0.0, per_key=Rate(3, 10.0))
    id = "0123456789abcdef"
    waits = [await fail(attempts, f"192.0.2.{n}", wrong_key(id)) for n in range(5)]
    assert waits == [0, 0, 0, 10, 10]
    assert await fail(attempts, "192.0.2.9", wrong_key()) == 0


async def test_a_credential_that_holds_is_accepted_beyond_every_limit() -> None:
    attempts = FailedAttempts(lambda: 0.0, per_address=Rate(1, 9.0), per_key=Rate(1, 9.0))
    key = wrong_key()
    for _ in range(3):
        await fail(attempts, "192.0.2.1", key)
    assert await attempts.authenticate("192.0.2.1", "key", key, holds) == "acme"


async def test_few_limited_clients_are_checked_at_the_same_time() -> None:
    attempts = FailedAttempts(lambda: 0.0, per_address=Rate(1, 9.0))
    for _ in range(2):
        await fail(attempts, "192.0.2.1")
    running = most = 0

    async def slow() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async def attempt() -> None:
        with pytest.raises(TooManyAttempts):
            await attempts.authenticate("192.0.2.1", "key", "", slow)

    await asyncio.gather(*(attempt() for _ in range(20)))
    assert most == 2


async def test_the_tables_of_failures_are_bounded() -> None:
    attempts = FailedAttempts(lambda: 0.0, max_entries=10)
    for number in range(100):
        await fail(attempts, f"192.0.2.{number}", wrong_key())
    assert len(attempts) == 20


async def test_wrong_keys_are_answered_429_and_logged_without_secrets(server: Server) -> None:
    with capture_logs() as logs:
        statuses = await use_up(server)
        tried = wrong_key()
        answer = await server.get("/v1/batches", key=tried)
    assert statuses == [401] * BURST + [429] * 2
    assert (answer.status, answer.code) == (429, "too_many_attempts")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await server.get("/v1/batches")).status == 200  # from the same address
    failed = [log for log in logs if log["event"] == "authentication_failed"]
    assert len(failed) == BURST
    assert failed[0]["address"] == "127.0.0.1"
    assert [log for log in logs if log["event"] == "authentication_limited"]
    assert tried.rpartition("_")[2] not in str(logs)


@pytest.mark.parametrize("way", ["cookie", "basic", "login_post", "login_link", "sse", "socket"])
async def test_every_way_to_present_a_credential_is_limited(way: str, server: Server) -> None:
    token = secrets.token_urlsafe(32)
    requests: dict[str, tuple[str, str, dict[str, Any]]] = {
        "cookie": ("GET", "/v1/batches", {"headers": {"Cookie": f"uptrail_session={token}"}}),
        "basic": ("GET", "/v1/batches", {"headers": {"Authorization": "Basic YTpi"}}),
        "login_post": ("POST", "/login", {"json": {"code": token}}),
        "login_link": ("GET", f"/login?code={token}", {}),
        "sse": (
            "GET",
            "/v1/feed",
            {"headers": {"Authorization": f"Bearer {wrong_key()}", "Accept": "text/event-stream"}},
        ),
        "socket": (
            "GET",
            "/v1/feed",
            {"headers": {"Authorization": f"Bearer {wrong_key()}", "Upgrade": "websocket"}},
        ),
    }
    method, path, options = requests[way]

    await use_up(server)
    answer = await server.ask(method, path, key=None, **options)
    assert (answer.status, answer.code) == (429, "too_many_attempts")


async def test_wrong_keys_in_messages_of_the_feed_are_limited(feed: FeedHarness) -> None:
    reasons = []
    for _ in range(BURST + 1):
        async with feed.viewer(None) as viewer:
            await viewer.until_frame("authenticate")
            await viewer.say(type="authenticate", token=wrong_key())
            message = await viewer.socket.receive()
            assert viewer.socket.close_code == 4500
            reasons.append(message.extra)
    assert "unknown" in reasons[0]
    assert "too many" in reasons[-1]
    async with feed.viewer(await feed.key()) as viewer:
        await viewer.until_frame("welcome")
        await viewer.say(type="authenticate", token=wrong_key())
        error = await viewer.until_frame("error")
        assert error["code"] == "too_many_attempts"
        assert not viewer.socket.closed


@pytest.mark.parametrize(
    ("trusted", "headers", "other", "limited"),
    [
        (True, {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}, False),
        (True, {"X-Forwarded-For": "9.9.9.9, 192.0.2.1"}, {"X-Forwarded-For": "192.0.2.1"}, True),
        (True, {"Forwarded": 'for="[2001:db8::1]:80"'}, {"Forwarded": "for=192.0.2.1"}, False),
        (
            True,
            {"X-Forwarded-For": "2001:db8::1"},
            {"X-Forwarded-For": "2001:db8::ffff"},
            True,
        ),
        (
            True,
            {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=1.1.1.1"},
            {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=2.2.2.2"},
            True,
        ),
        (True, {"X-Forwarded-For": "nonsense"}, {}, True),
        (False, {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}, True),
    ],
)
async def test_the_address_is_that_of_the_client_where_a_proxy_is_trusted(
    trusted: bool,
    headers: dict[str, str],
    other: dict[str, str],
    limited: bool,
    database_url: str,
    tmp_path: Path,
) -> None:
    async with serving(database_url, tmp_path, trust_forwarded=trusted) as server:
        assert (await use_up(server, headers=headers))[-1] == 429
        answer = await server.get("/v1/batches", key=wrong_key(), headers=other)
        assert answer.status == (429 if limited else 401)


@pytest.mark.options(trust_forwarded=True)
async def test_wrong_secrets_for_a_key_do_not_lock_its_holder_out(server: Server) -> None:
    key, text = await server.services.keys.create(owner="acme", scope=Scope.VIEWER)
    statuses = []
    for number in range(12):
        headers = {"X-Forwarded-For": f"192.0.2.{number}"}
        answer = await server.get("/v1/batches", key=wrong_key(key.id), headers=headers)
        statuses.append(answer.status)
    assert statuses == [401] * 10 + [429] * 2
    assert (await server.get("/v1/batches", key=text)).status == 200


async def test_a_login_takes_one_kibibyte_at_most(server: Server) -> None:
    body = b'{"code":"' + b"x" * 2000 + b'"}'
    headers = {"Content-Type": "application/json"}

    async def chunks() -> Any:
        yield body

    for data in (body, chunks()):
        answer = await server.post("/login", key=None, data=data, headers=headers)
        assert (answer.status, answer.code) == (413, "too_large")
        assert "1024" in answer.json["detail"]
