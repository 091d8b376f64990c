"""API keys on a real PostgreSQL: what is stored, and when they become invalid."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from application.errors import NotFound, Unavailable
from application.ports.auth import Principal, Scope
from infrastructure.auth import keys as module
from infrastructure.auth.keys import PostgresKeys, ensure_admin_key
from infrastructure.postgres.pool import Pool, make_pool
from tests.support import eventually


@asynccontextmanager
async def pool_of(url: str) -> AsyncIterator[Pool]:
    async with make_pool(url, name="test") as pool:
        yield pool


async def test_a_key_speaks_for_its_owner_with_its_scope(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    batch = UUID(int=7)
    key, text = await keys.create(owner="acme", scope=Scope.UPLOADER, label="camera", batch=batch)

    assert await keys.authenticate(text) == Principal(
        f"key:{key.id}", "acme", Scope.UPLOADER, batch
    )
    assert (key.label, key.revoked_at) == ("camera", None)
    assert text.startswith(f"up_{key.id}_")


async def test_no_secret_is_stored_only_its_hash(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    _, text = await keys.create(owner="acme", scope=Scope.ADMIN)
    principal = await keys.authenticate(text)
    assert principal is not None
    token = await keys.open_session(principal, lifetime=60)
    code = await keys.create_login_code(principal, lifetime=60)

    stored = ""
    async with pool.connection() as connection:
        for table in ("api_keys", "browser_sessions", "login_codes"):
            rows = await connection.execute(f"SELECT t::text FROM {table} t")
            stored += str(await rows.fetchall())
    assert not [s for s in (text.split("_", 2)[2], token, code) if s in stored]


@pytest.mark.parametrize("other", ["", "up_", "up__", "up_0123456789abcdef_", "nonsense", "up_x_y"])
async def test_a_text_that_is_no_key_authenticates_nothing(pool: Pool, other: str) -> None:
    assert await PostgresKeys(pool).authenticate(other) is None


async def test_a_known_id_with_another_secret_is_not_authenticated(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    _, text = await keys.create(owner="acme", scope=Scope.VIEWER)
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")

    assert await keys.authenticate(wrong) is None
    assert await keys.authenticate(text) is not None
    assert await keys.authenticate(wrong) is None


async def test_a_revoked_key_ends_at_once_here_and_soon_everywhere(pool: Pool) -> None:
    here, elsewhere = PostgresKeys(pool), PostgresKeys(pool)
    key, text = await here.create(owner="acme", scope=Scope.OPERATOR)
    assert await here.authenticate(text)
    assert await elsewhere.authenticate(text)

    revoked = await here.revoke(key.id, owner="acme")

    assert revoked.revoked_at is not None
    assert await here.authenticate(text) is None
    assert await here.revoke(key.id, owner="acme") == revoked

    async def gone() -> bool:
        return await elsewhere.authenticate(text) is None

    await eventually(gone)


async def test_a_key_revoked_during_its_check_is_not_remembered(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = PostgresKeys(pool)
    key, text = await keys.create(owner="acme", scope=Scope.OPERATOR)
    look = keys._one

    async def look_and_be_overtaken(*arguments: Any) -> Any:
        row = await look(*arguments)
        await keys.revoke(key.id, owner=None)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(keys, "_one", look_and_be_overtaken)
        await keys.authenticate(text)

    assert await keys.authenticate(text) is None


async def test_a_slow_check_keeps_a_revoked_key_for_no_longer_than_a_quick_one(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    here, elsewhere = PostgresKeys(pool), PostgresKeys(pool)
    key, text = await here.create(owner="acme", scope=Scope.OPERATOR)
    look = elsewhere._one

    async def look_slowly(*arguments: Any) -> Any:
        nonlocal now
        row = await look(*arguments)
        now += module.KEY_CACHE_SECONDS
        return row

    with monkeypatch.context() as patch:
        patch.setattr(elsewhere, "_one", look_slowly)
        assert await elsewhere.authenticate(text) is not None
    await here.revoke(key.id, owner=None)

    assert await elsewhere.authenticate(text) is None


async def test_an_owner_neither_revokes_nor_lists_keys_of_another(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    mine, _ = await keys.create(owner="acme", scope=Scope.OPERATOR)
    theirs, text = await keys.create(owner="globex", scope=Scope.OPERATOR)

    with pytest.raises(NotFound):
        await keys.revoke(theirs.id, owner="acme")

    assert await keys.authenticate(text)
    assert await keys.all(owner="acme") == [mine]
    assert {key.id for key in await keys.all(owner=None)} == {mine.id, theirs.id}


async def test_an_expired_key_is_not_authenticated(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    past = datetime.now(UTC) - timedelta(seconds=1)
    _, text = await keys.create(owner="acme", scope=Scope.ADMIN, expires_at=past)

    assert await keys.authenticate(text) is None


async def test_a_key_is_recently_authenticated_until_it_is_revoked(pool: Pool) -> None:
    keys = PostgresKeys(pool)
    key, text = await keys.create(owner="acme", scope=Scope.OPERATOR)
    assert keys.recently_authenticated(text) is None

    principal = await keys.authenticate(text)
    assert principal is not None
    assert keys.recently_authenticated(text) == principal
    same_id = text[:-43] + "x" * 43
    assert await keys.authenticate(same_id) is None
    assert keys.recently_authenticated(same_id) is None
    assert keys.recently_authenticated(text + "x") is None

    await keys.revoke(key.id, owner="acme")
    assert keys.recently_authenticated(text) is None


async def test_a_key_is_recently_authenticated_only_for_a_while(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEY_CACHE_SECONDS", 0.0)
    keys = PostgresKeys(pool)
    _, text = await keys.create(owner="acme", scope=Scope.OPERATOR)

    assert await keys.authenticate(text)
    assert keys.recently_authenticated(text) is None


async def test_no_more_keys_are_remembered_than_allowed(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CACHED_KEYS", 2)

    keys = PostgresKeys(pool)
    for _ in range(5):
        _, text = await keys.create(owner="acme", scope=Scope.VIEWER)
        assert await keys.authenticate(text)

    assert len(keys._remembered) == 2


async def test_keys_are_unavailable_without_the_database() -> None:
    pool = make_pool("postgresql://nobody@127.0.0.1:1/none", name="test")
    pool.timeout = 0.2
    async with pool:
        with pytest.raises(Unavailable):
            await PostgresKeys(pool).find("0")


# The first admin key: made at the first start, readable only by its owner.


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


async def test_the_first_start_makes_a_key_and_the_next_finds_it(
    pool: Pool, tmp_path: Path
) -> None:
    keys, file = PostgresKeys(pool), tmp_path / "data" / "admin.key"
    assert await keys.all(owner=None) == []

    text = await ensure_admin_key(keys, file)

    principal = await keys.authenticate(text)
    assert principal is not None
    assert (principal.owner, principal.scope) == ("default", Scope.ADMIN)
    assert file.read_text() == text + "\n"
    assert mode(file) == 0o600
    assert os.listdir(file.parent) == ["admin.key"]
    assert await ensure_admin_key(keys, file) == text
    assert len(await keys.all(owner=None)) == 1


async def test_no_two_installations_share_a_secret(pool: Pool, tmp_path: Path) -> None:
    keys = PostgresKeys(pool)
    one = await ensure_admin_key(keys, tmp_path / "one")
    two = await ensure_admin_key(keys, tmp_path / "two")

    assert one.split("_", 2)[2] != two.split("_", 2)[2]


async def test_one_of_two_servers_that_start_together_makes_the_key(
    pool: Pool, tmp_path: Path
) -> None:
    file = tmp_path / "admin.key"
    texts = await asyncio.gather(*(ensure_admin_key(PostgresKeys(pool), file) for _ in range(6)))

    assert set(texts) == {file.read_text().strip()}
    live = [k for k in await PostgresKeys(pool).all(owner=None) if not k.revoked_at]
    assert len(live) == 1


async def test_a_file_from_another_database_or_cut_short_is_replaced(
    pool: Pool, tmp_path: Path
) -> None:
    keys, file = PostgresKeys(pool), tmp_path / "admin.key"
    for leftover in ("", "up_0123456789abcdef_" + "a" * 43):
        file.write_text(leftover)
        file.chmod(0o644)

        text = await ensure_admin_key(keys, file)

        assert await keys.authenticate(text)
        assert mode(file) == 0o600


async def test_a_revoked_admin_key_does_not_come_back(pool: Pool, tmp_path: Path) -> None:
    keys, file = PostgresKeys(pool), tmp_path / "admin.key"
    text = await ensure_admin_key(keys, file)
    await keys.revoke(text.split("_")[1], owner=None)

    assert await ensure_admin_key(keys, file) == text
    assert await keys.authenticate(text) is None
    assert len(await keys.all(owner=None)) == 1
