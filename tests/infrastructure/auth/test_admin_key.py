"""The first admin key is made at the first start and readable only by its owner."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from application.ports.auth import Scope
from infrastructure.auth.keys import PostgresKeys, ensure_admin_key
from infrastructure.postgres.pool import Pool


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
