"""SQL changes keys, sign-ins, erasures and owners' keys; verification names each change."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from application.append import Append, StreamAppend
from application.audit.derived import DerivedFinding
from application.ports.audit import Erasure
from application.ports.auth import Scope
from infrastructure.audit.derived import check_derived
from infrastructure.auth.keys import PostgresKeys
from infrastructure.erasure.keyring import PostgresErasures, mark_done
from infrastructure.erasure.wrapped_keys import destroy_masters_of
from infrastructure.event_store.codec import Codec
from infrastructure.postgres.pool import make_pool
from infrastructure.read_model import projector
from tests.builders import registered, started
from tests.conftest import Databases
from tests.infrastructure.erasure.memory_master_keys import MASTERS, keyring_on
from tests.infrastructure.erasure.test_keyring import open_keyed_log
from tests.infrastructure.event_store.log_support import connected
from tests.support import run, with_database

HASH = "decode(repeat('ab', 32), 'hex')"


@pytest.fixture(scope="module")
def history(databases: Databases) -> Iterator[str]:
    """Keys of which one is revoked, a login link, a session, and an owner who was erased."""
    name = databases.take()
    run(_record(with_database(databases.server_url, name)))
    yield name
    databases.drop(name)


@pytest.fixture
def altered(history: str, databases: Databases) -> Iterator[str]:
    """A copy of that database, for one test to alter."""
    name = f"uptrail_test_{uuid4().hex[:12]}"
    with psycopg.connect(databases.server_url, autocommit=True) as server:
        server.execute(
            SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(history))
        )
    yield with_database(databases.server_url, name)
    databases.drop(name)


async def _record(url: str) -> None:
    async with open_keyed_log(url) as log, make_pool(url, name="test") as pool:
        for owner in ("acme", "gone"):
            batch = uuid4()
            await log.append(Append((StreamAppend(batch, 0, (started(owner=owner, label="x"),)),)))
            file = registered(batch=batch, owner=owner)
            await log.append(Append((StreamAppend(uuid4(), 0, (file,)),)))
        keys = PostgresKeys(pool)
        for label in ("kept", "ended"):
            key, text = await keys.create(owner="acme", scope=Scope.VIEWER, label=label, by="me")
            principal = await keys.authenticate(text)
            assert principal is not None
        await keys.create_login_code(principal, lifetime=3600)
        await keys.open_session(principal, lifetime=3600)
        used = await keys.create_login_code(principal, lifetime=3600)
        assert await keys.redeem_login(used)
        await keys.revoke(key.id, owner=None, by="me")
        asked = datetime.now(UTC)
        erasure = Erasure(
            id=uuid4(), owner="gone", reason="asked", requested_by="me", requested_at=asked
        )
        await PostgresErasures(pool).request(erasure)
        async with connected(url) as connection:
            await connection.execute(
                "CREATE TABLE kept AS SELECT id, wrapped FROM audit.owner_keys"
            )
            await connection.execute(
                "UPDATE audit.owner_keys SET wrapped = NULL, destroyed_at = now()"
                " WHERE owner = 'gone'"
            )
            await destroy_masters_of(connection, MASTERS, "gone")
            await mark_done(connection, erasure, datetime.now(UTC), 1, 1)
        await projector.catch_up(url, log)
        async with connected(url) as connection:  # the followers that do not run here
            await connection.execute(
                "DELETE FROM notification_tracking WHERE application_name"
                " IN ('orchestrator', 'webhooks')"
            )


async def check(url: str) -> list[DerivedFinding]:
    """The findings, but for those about followers, which did not run."""
    async with make_pool(url, name="keys", max_size=1) as pool:
        found = await check_derived(url, Codec(encryption=await keyring_on(pool)))
    kinds = {"key_altered", "sign_in_altered", "erasure_altered", "owner_key_altered"}
    return [one for one in found.findings if one.kind in kinds]


async def test_unaltered_rows_follow_from_the_log(history: str, databases: Databases) -> None:
    assert await check(with_database(databases.server_url, history)) == []


@pytest.mark.parametrize(
    ("statement", "kind", "table", "detail"),
    [
        (
            "INSERT INTO api_keys (id, secret_hash, owner, scope, label)"
            f" VALUES ('0123456789abcdef', {HASH}, 'acme', 'admin', 'mine')",
            "key_altered",
            "api_keys",
            "no event in the log is of it",
        ),
        ("DELETE FROM api_keys WHERE label = 'kept'", "key_altered", "api_keys", "is missing"),
        (
            "UPDATE api_keys SET scope = 'admin' WHERE label = 'kept'",
            "key_altered",
            "api_keys",
            "scope is admin, the log says viewer",
        ),
        (
            "UPDATE api_keys SET owner = 'globex' WHERE label = 'kept'",
            "key_altered",
            "api_keys",
            "owner is globex, the log says acme",
        ),
        (
            "UPDATE api_keys SET expires_at = now() WHERE label = 'kept'",
            "key_altered",
            "api_keys",
            "the log says None",
        ),
        (
            "UPDATE api_keys SET revoked_at = NULL WHERE label = 'ended'",
            "key_altered",
            "api_keys",
            "revoked_at is None",
        ),
        (
            f"UPDATE api_keys SET secret_hash = {HASH} WHERE label = 'kept'",
            "key_altered",
            "api_keys",
            "secret_digest",
        ),
        (
            "UPDATE api_keys SET batch = gen_random_uuid() WHERE label = 'kept'",
            "key_altered",
            "api_keys",
            "batch is",
        ),
        (
            'UPDATE browser_sessions SET principal = principal || \'{"scope": "admin"}\'',
            "sign_in_altered",
            "browser_sessions",
            "scope is admin, the log says viewer",
        ),
        (
            "UPDATE browser_sessions SET expires_at = expires_at + interval '1 year'",
            "sign_in_altered",
            "browser_sessions",
            "expires_at",
        ),
        (
            "UPDATE browser_sessions SET key_id = NULL",
            "sign_in_altered",
            "browser_sessions",
            "revoking that key would not end it",
        ),
        (
            "INSERT INTO browser_sessions SELECT"
            f" {HASH}, principal, key_id, expires_at FROM browser_sessions",
            "sign_in_altered",
            "browser_sessions",
            "no event in the log is of it",
        ),
        (
            f"INSERT INTO login_codes SELECT {HASH}, principal, key_id, expires_at"
            " FROM login_codes",
            "sign_in_altered",
            "login_codes",
            "no event in the log is of it",
        ),
        ("DELETE FROM audit.erasures", "erasure_altered", "audit.erasures", "is missing"),
        (
            "UPDATE audit.erasures SET requested_by = 'nobody'",
            "erasure_altered",
            "audit.erasures",
            "requested_by is nobody, the log says me",
        ),
        (
            "UPDATE audit.erasures SET finished_at = NULL",
            "erasure_altered",
            "audit.erasures",
            "finished_at is None",
        ),
        (
            "INSERT INTO audit.erasures VALUES (gen_random_uuid(), 'acme', '', 'me', now())",
            "erasure_altered",
            "audit.erasures",
            "no event in the log is of it",
        ),
        (
            "UPDATE audit.owner_keys k SET wrapped = kept.wrapped, destroyed_at = NULL FROM kept"
            " WHERE kept.id = k.id AND owner = 'gone'",
            "owner_key_altered",
            "audit.owner_keys",
            "although an erasure destroyed it",
        ),
        (
            "UPDATE audit.owner_keys SET wrapped = NULL, destroyed_at = now() WHERE owner = 'acme'",
            "owner_key_altered",
            "audit.owner_keys",
            "no erasure of acme was requested",
        ),
        (
            "UPDATE audit.master_keys SET destroyed_at = now() WHERE current",
            "owner_key_altered",
            "audit.owner_keys",
            "which is destroyed or unknown",
        ),
        (
            "UPDATE audit.master_keys SET destroyed_at = NULL WHERE NOT current",
            "owner_key_altered",
            "audit.owner_keys",
            "was destroyed, but not the master key",
        ),
        (
            "DELETE FROM audit.owner_keys WHERE owner = 'acme'",
            "owner_key_altered",
            "audit.owner_keys",
            "is missing",
        ),
        (
            "UPDATE audit.owner_keys SET owner = 'globex' WHERE owner = 'acme'",
            "owner_key_altered",
            "audit.owner_keys",
            "owner is globex, the log says acme",
        ),
    ],
)
async def test_an_altered_row_is_named_with_what_differs(
    altered: str, statement: str, kind: str, table: str, detail: str
) -> None:
    with psycopg.connect(altered, autocommit=True) as connection:
        assert connection.execute(statement.encode()).rowcount > 0

    found = await check(altered)

    named = [one for one in found if (one.kind, one.table) == (kind, table)]
    assert any(detail in one.detail for one in named), found


async def test_a_login_link_that_was_used_cannot_be_put_back(altered: str) -> None:
    """A used pass is inserted again from a copy of its row."""

    async with make_pool(altered, name="test") as pool:
        keys = PostgresKeys(pool)
        _, text = await keys.create(owner="acme", scope=Scope.ADMIN)
        principal = await keys.authenticate(text)
        assert principal is not None
        code = await keys.create_login_code(principal, lifetime=3600)
        async with pool.connection() as connection:
            await connection.execute("CREATE TABLE used AS SELECT * FROM login_codes")
            await keys.redeem_login(code)
            await connection.execute(
                "INSERT INTO login_codes SELECT * FROM used ON CONFLICT DO NOTHING"
            )

    (found,) = await check(altered)
    assert (found.table, found.detail) == (
        "login_codes",
        "differs from the log: ended is False, the log says True",
    )
