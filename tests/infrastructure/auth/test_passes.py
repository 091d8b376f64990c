"""Browser sessions and one-time logins end by expiry, by use, and with their key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from application.ports.auth import Principal, Scope
from infrastructure.auth.keys import PostgresKeys
from infrastructure.postgres.pool import Pool

NOBODY = Principal("oidc:7", "acme", Scope.VIEWER)


async def test_a_login_code_is_good_for_one_login(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    code = await keys.create_login_code(NOBODY, lifetime=60)

    assert await keys.redeem_login(code) == NOBODY
    assert await keys.redeem_login(code) is None
    assert await keys.redeem_login("never issued") is None


async def test_a_session_lasts_until_it_is_closed(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    token = await keys.open_session(NOBODY, lifetime=60)

    found = await keys.session(token)
    assert found is not None
    assert (found.name, found.owner, found.scope) == ("oidc:7", "acme", Scope.VIEWER)
    assert found.expires_at is not None
    assert found.expires_at > datetime.now(UTC)

    await keys.close_session(token)
    assert await keys.session(token) is None


async def test_an_expired_pass_is_invalid_and_swept(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    token = await keys.open_session(NOBODY, lifetime=-1)
    code = await keys.create_login_code(NOBODY, lifetime=-1)

    assert await keys.session(token) is None
    assert await keys.redeem_login(code) is None
    await keys.open_session(NOBODY, lifetime=60)
    async with pool.connection() as connection:
        rows = await connection.execute("SELECT count(*) FROM browser_sessions")
        assert await rows.fetchone() == (1,)


async def test_a_session_and_a_login_fall_with_the_key_they_came_from(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    key, text = await keys.create(owner="acme", scope=Scope.OPERATOR)
    principal = await keys.authenticate(text)
    assert principal is not None
    token = await keys.open_session(principal, lifetime=60)
    code = await keys.create_login_code(principal, lifetime=60)

    await keys.revoke(key.id, owner=None)

    assert await keys.session(token) is None
    assert await keys.redeem_login(code) is None


async def test_a_session_ends_no_later_than_its_principal(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    soon = datetime.now(UTC) + timedelta(seconds=30)
    token = await keys.open_session(
        Principal("oidc:7", "acme", Scope.VIEWER, None, soon), lifetime=3600
    )

    found = await keys.session(token)
    assert found is not None
    assert found.expires_at == soon
