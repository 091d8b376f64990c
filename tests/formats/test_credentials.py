"""Keys, tokens and encrypted fields, as `docs/formats.md` states them.

The expected values were computed from that page with hashlib, and with AES-GCM of `cryptography`.
"""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from application.ports.auth import Scope
from domain.ids import sign_in_stream_for
from domain.upload.events import UploadRegistered
from infrastructure.auth.keys import digest_of
from infrastructure.auth.tokens import (
    KeyText,
    is_token,
    new_key,
    new_token,
    parse_key,
    token_hash,
)
from infrastructure.erasure.keyring import Keyring
from infrastructure.erasure.master_keys import FileMasterKeys
from infrastructure.event_store.codec import Codec
from infrastructure.postgres.pool import make_pool
from tests.interfaces.rest.server import serving
from tests.support import execute

TOKEN = "A" * 43
HASH = bytes.fromhex("0f007385b6f9d4b7eeb2748605afe1a984a0a3bfa3f014d09e2a784ce9e5cd1a")
KEY = f"up_0123456789abcdef_{TOKEN}"


def test_the_hash_of_a_secret_is_that_of_its_text() -> None:
    assert token_hash(TOKEN) == HASH
    assert digest_of(HASH) == (
        "sha256:b78ea9f06b76cc863fcb2714014a7f03a3fb523d9e74f5895bfe8c2cc8f89d3d"
    )


def test_a_key_has_an_id_and_a_secret() -> None:
    assert parse_key(KEY) == KeyText("0123456789abcdef", TOKEN)
    assert str(KeyText("0123456789abcdef", TOKEN)) == KEY
    assert re.fullmatch(r"up_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", str(new_key()))


@pytest.mark.parametrize(
    "text",
    [
        KEY.upper(),
        KEY[:-1],
        KEY + "A",
        KEY + "\n",
        KEY.replace("up_", "UP_"),
        KEY.replace("A", "\u00c4"),
        KEY.replace("f_", "g_"),
    ],
)
def test_another_text_is_no_key(text: str) -> None:
    assert parse_key(text) is None


def test_a_token_is_32_random_bytes_in_base64url() -> None:
    tokens = {new_token() for _ in range(100)}

    assert len(tokens) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) and is_token(token) for token in tokens)
    assert not any(map(is_token, ("", TOKEN[:-1], TOKEN + "A", TOKEN + "\n", "A" * 42 + "=")))


async def test_the_database_has_the_hash_of_each_credential_and_no_credential(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server:
        key = await server.key_for(Scope.OPERATOR)
        principal = await server.services.keys.authenticate(key)
        assert principal is not None
        session = await server.services.keys.open_session(principal, lifetime=60)
        code = await server.services.keys.create_login_code(principal, lifetime=60)

    parts = parse_key(key)
    assert parts is not None
    with psycopg.connect(database_url) as connection:

        def stored(query: str, *values: object) -> object:
            row = connection.execute(query.encode(), values).fetchone()
            return row and row[0]

        assert stored("SELECT secret_hash FROM api_keys WHERE id = %s", parts.id) == token_hash(
            parts.secret
        )
        for table, kind, token in (
            ("browser_sessions", "session", session),
            ("login_codes", "login", code),
        ):
            assert stored(f"SELECT token_hash FROM {table}") == token_hash(token)
            stream = sign_in_stream_for(kind, token_hash(token))
            assert stored("SELECT 1 FROM stored_events WHERE originator_id = %s", stream) == 1
        for secret in (parts.secret, session, code):
            query = "SELECT count(*) FROM stored_events WHERE position(%s::bytea IN state) > 0"
            assert stored(query, secret.encode()) == 0


KEY_ID = UUID("019b0000-0000-7000-8000-00000000aaaa")
WRAPPED = bytes.fromhex(
    "6e6f6e63652d6f662d6b657954e01c625eb90f67346e38b8b7b6c18be28f7cdcc2915632bec98efeda5e60ea"
    "b00ad98bdd3457bae04409e089def32271d8c0ba5d69b9b424bc873a1e41f263"
)
STATE = (
    b'{"private":{"key":"019b0000-0000-7000-8000-00000000aaaa","box":"bm9uY2Utb2YtYm94ANzvTLUmpdw3'
    b"j5IvQFJ6FINyJ1NYo+dJJzefomKE4YesOzhCkq8Qe8m7aCvp4TMRUZ2JGAXWWqd4pUCD6xk/2yl++liCDdhasnV4Nvpk"
    b'd36LDJTG"},"event":{"type":"upload.registered","at":"2026-01-01T12:00:00Z","by":"key:alice",'
    b'"batch":"019b0000-0000-7000-8000-000000000001","owner":"acme","path":"","size":100,'
    b'"pipeline":"default"}}'
)


async def test_encrypted_fields_are_read_with_the_keys_of_the_manual(
    database_url: str, tmp_path: Path
) -> None:
    """The bytes 32 to 63 are the owner's key, 64 to 95 the master key in the file."""
    (tmp_path / "golden.key").write_text("QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=\n")
    execute(
        database_url,
        "INSERT INTO audit.master_keys (id, proof, current) VALUES ('golden', '', true)",
    )
    execute(
        database_url,
        "INSERT INTO audit.owner_keys (id, owner, wrapped, master) VALUES (%s, 'acme', %s, %s)",
        KEY_ID,
        WRAPPED,
        "golden",
    )

    async with make_pool(database_url, name="keys", max_size=1) as pool:
        codec = Codec(encryption=Keyring(pool, FileMasterKeys(tmp_path)))
        await codec.load_keys([STATE])
        event, _ = codec.decode("upload.registered", STATE)

    assert isinstance(event, UploadRegistered)
    assert (event.path, event.size) == ("diary.txt", 100)
