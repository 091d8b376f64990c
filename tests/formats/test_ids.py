"""Derived ids, as `docs/formats.md` states them; each of their inputs changes the id.

The expected ids were computed from that page with hashlib and hmac, never with the product.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import psycopg
import pytest

from domain import ids
from tests.interfaces.rest.server import serving
from tests.support import execute

SECRET = bytes(range(32))
OLD = b""  # the secret of a database of version 0.1
BATCH = UUID("019b0000-0000-7000-8000-00000000000b")
OTHER = UUID("019b0000-0000-7000-8000-00000000000c")
PARTS = (
    UUID("11111111-1111-5111-8111-111111111111"),
    UUID("22222222-2222-5222-8222-222222222222"),
)
TOKEN = b"A" * 43
TOKEN_HASH = bytes.fromhex("0f007385b6f9d4b7eeb2748605afe1a984a0a3bfa3f014d09e2a784ce9e5cd1a")


class Derivation(NamedTuple):
    """A function with its inputs, the id of these, and for each input another value."""

    function: Callable[..., UUID]
    inputs: tuple[object, ...]
    expected: str
    others: tuple[object, ...]


DERIVATIONS = [
    Derivation(
        ids.batch_id_for,
        ("acme", "monday-1", SECRET),
        "ae130540-7f02-8910-a184-eed4d64ff3cc",
        ("globex", "monday-2", SECRET[::-1]),
    ),
    Derivation(
        ids.batch_id_for,
        ("acme", "monday-1", OLD),
        "92e5767b-f4aa-8270-bfc0-12dcffe88e76",
        ("globex", "monday-2", SECRET),
    ),
    Derivation(
        ids.concatenated_batch_id_for,
        (PARTS, SECRET),
        "5f55ca0f-c4a7-82e5-826c-a7d3e0e0be30",
        (PARTS[::-1], SECRET[::-1]),
    ),
    Derivation(
        ids.concatenated_batch_id_for,
        (PARTS, OLD),
        "3fc3a32f-d9e7-8558-a553-c5a71e8b81cf",
        (PARTS[:1], SECRET),
    ),
    Derivation(
        ids.upload_id_for,
        (BATCH, "R\u00f6mer.jpg", SECRET),
        "019b0000-0000-8e49-bf44-e9c5e02758c0",
        (OTHER, "r\u00f6mer.jpg", SECRET[::-1]),
    ),
    Derivation(
        ids.upload_id_for,
        (BATCH, "R\u00f6mer.jpg", OLD),
        "019b0000-0000-8943-8d59-62d6c07ebb50",
        (OTHER, "r\u00f6mer.jpg", SECRET),
    ),
    Derivation(
        ids.unnormalised_upload_id_for,
        (BATCH, "Ro\u0308mer.jpg", OLD),
        "019b0000-0000-8ae9-8efa-7ce1b9fccae4",
        (OTHER, "R\u00f6mer.jpg", SECRET),
    ),
    Derivation(
        ids.rejection_id_for,
        (BATCH, "a.exe", "not allowed", SECRET),
        "019b0000-0000-89b1-b67c-d0fe9bdd4278",
        (OTHER, "b.exe", "too large", SECRET[::-1]),
    ),
    Derivation(
        ids.rejection_id_for,
        (BATCH, "a.exe", "not allowed", OLD),
        "019b0000-0000-812d-8603-9f276af0915e",
        (OTHER, "b.exe", "too large", SECRET),
    ),
    Derivation(
        ids.command_id_for,
        ("acme", "monday-1"),
        "64ad76d8-446c-80a4-a6e0-f0772299c424",
        ("globex", "monday-2"),
    ),
    Derivation(
        ids.partial_upload_id_for,
        (BATCH,),
        "9252758a-ae5d-5168-b877-1530981a86f3",
        (OTHER,),
    ),
    Derivation(
        ids.key_stream_for,
        ("0123456789abcdef",),
        "b4c866ca-4320-8fd4-8b3c-f91a86e09fe3",
        ("0123456789abcdee",),
    ),
    Derivation(
        ids.sign_in_stream_for,
        ("session", TOKEN_HASH),
        "d2fc6f00-ac68-81eb-bcf9-6e238ba496b7",
        ("login", TOKEN_HASH[::-1]),
    ),
    Derivation(
        ids.sign_in_stream_for,
        ("login", TOKEN_HASH),
        "c7e7a72a-106b-875f-93bd-947d7d20ab24",
        ("session", TOKEN_HASH[::-1]),
    ),
]

derivations = pytest.mark.parametrize(
    "derivation",
    DERIVATIONS,
    ids=[f"{one.function.__name__}-{number}" for number, one in enumerate(DERIVATIONS)],
)


def test_every_derived_id_is_listed() -> None:
    public = {name for name in vars(ids) if name.endswith("_for")}

    assert public == {one.function.__name__ for one in DERIVATIONS}


@derivations
def test_a_derived_id_is_that_of_the_manual(derivation: Derivation) -> None:
    assert str(derivation.function(*derivation.inputs)) == derivation.expected


@derivations
def test_each_input_changes_the_id(derivation: Derivation) -> None:
    found = {derivation.expected}
    for index, other in enumerate(derivation.others):
        inputs = [*derivation.inputs[:index], other, *derivation.inputs[index + 1 :]]
        found.add(str(derivation.function(*inputs)))

    assert len(found) == 1 + len(derivation.inputs)


def test_both_spellings_of_a_path_are_one_upload() -> None:
    composed, decomposed = "R\u00f6mer.jpg", "Ro\u0308mer.jpg"

    assert ids.upload_id_for(BATCH, composed, SECRET) == ids.upload_id_for(
        BATCH, decomposed, SECRET
    )


def test_a_separator_keeps_neighbouring_inputs_apart() -> None:
    assert ids.batch_id_for("ab", "c", SECRET) != ids.batch_id_for("a", "bc", SECRET)
    assert ids.command_id_for("ab", "c") != ids.command_id_for("a", "bc")
    assert ids.rejection_id_for(BATCH, "ab", "c", SECRET) != ids.rejection_id_for(
        BATCH, "a", "bc", SECRET
    )


@pytest.mark.parametrize(
    ("secret", "batch"),
    [
        (SECRET, "ae130540-7f02-8910-a184-eed4d64ff3cc"),
        (OLD, "92e5767b-f4aa-8270-bfc0-12dcffe88e76"),
    ],
    ids=["database with a secret", "database of version 0.1"],
)
async def test_a_server_derives_ids_with_the_secret_of_its_database(
    database_url: str, tmp_path: Path, secret: bytes, batch: str
) -> None:
    execute(database_url, "UPDATE derived_ids SET secret = %s", secret)

    async with serving(database_url, tmp_path) as server:
        started = await server.post("/v1/batches", json={}, headers={"Idempotency-Key": "monday-1"})

    assert started.json["id"] == batch


async def test_a_restarted_server_keeps_the_secret_of_its_database(
    database_url: str, tmp_path: Path
) -> None:
    def secret() -> object:
        with psycopg.connect(database_url) as connection:
            return connection.execute("SELECT secret FROM derived_ids").fetchall()

    before = secret()
    for _ in range(2):
        async with serving(database_url, tmp_path) as server:
            await server.batch("a")

    assert secret() == before
