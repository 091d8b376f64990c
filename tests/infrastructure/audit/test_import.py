"""Keys, sign-ins and erasures from before they were recorded are brought under the log, once."""

from __future__ import annotations

import psycopg

from application.ports.auth import Scope
from domain.event import topic_of
from infrastructure.auth.keys import PostgresKeys
from infrastructure.postgres.pool import make_pool
from infrastructure.postgres.schema import migrate
from tests.infrastructure.audit.test_access_check import check
from tests.infrastructure.event_store.log_support import whole_log
from tests.infrastructure.postgres.old_databases import migrate_to

BEFORE = "0017"
HASH = "decode(repeat('ab', 32), 'hex')"
OLD_ROWS = (
    f"""INSERT INTO api_keys VALUES
    ('aaaaaaaaaaaaaaaa', {HASH}, 'acme', 'admin', 'first', NULL, '2026-01-01', NULL, NULL),
    ('bbbbbbbbbbbbbbbb', {HASH}, 'acme', 'viewer', '', gen_random_uuid(), '2026-01-02',
     '2026-06-01', '2026-02-01')""",
    f"""INSERT INTO browser_sessions VALUES ({HASH}, '{{"name": "key:aaaaaaaaaaaaaaaa",
    "owner": "acme", "scope": "admin", "batch": null, "expires_at": null}}', 'aaaaaaaaaaaaaaaa',
    '2027-01-01')""",
    """INSERT INTO audit.erasures VALUES
    (gen_random_uuid(), 'gone', 'asked', 'key:aaaaaaaaaaaaaaaa', '2026-03-01', '2026-03-02', 4, 9),
    (gen_random_uuid(), 'going', '', 'key:aaaaaaaaaaaaaaaa', '2026-04-01', NULL, 0, 0)""",
)


def by_hand(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def topics(url: str) -> list[str]:
    return [topic_of(recorded.event) for recorded in await whole_log(url)]


async def test_rows_of_an_older_database_verify_after_its_migration(
    empty_database_url: str,
) -> None:
    migrate_to(empty_database_url, BEFORE)
    by_hand(empty_database_url, *OLD_ROWS)

    migrate(empty_database_url)

    imported = ["key.imported", "key.imported", "session.opened"]
    assert await topics(empty_database_url) == [*imported, "erasure.imported", "erasure.imported"]
    assert await check(empty_database_url) == []


async def test_an_imported_key_is_revoked_like_any_other(empty_database_url: str) -> None:
    migrate_to(empty_database_url, BEFORE)
    by_hand(empty_database_url, *OLD_ROWS)
    migrate(empty_database_url)

    async with make_pool(empty_database_url, name="test") as pool:
        keys = PostgresKeys(pool)
        await keys.revoke("aaaaaaaaaaaaaaaa", owner=None, by="key:cccc")
        await keys.revoke("bbbbbbbbbbbbbbbb", owner=None)  # it was revoked before
        await keys.create(owner="acme", scope=Scope.VIEWER)
    assert (await topics(empty_database_url))[5:] == ["key.revoked", "key.created"]
    assert await check(empty_database_url) == []


async def test_a_key_put_in_after_the_migration_is_not_imported(empty_database_url: str) -> None:
    migrate(empty_database_url)
    by_hand(empty_database_url, OLD_ROWS[0])

    migrate(empty_database_url)

    assert await topics(empty_database_url) == []
    assert {(one.kind, one.key) for one in await check(empty_database_url)} == {
        ("key_altered", "aaaaaaaaaaaaaaaa"),
        ("key_altered", "bbbbbbbbbbbbbbbb"),
    }
