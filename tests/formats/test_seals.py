"""Digests of events, log seals and exports, as `docs/audit.md` states them.

The expected values were computed from that page with hashlib, struct and
`openssl pkeyutl -sign -rawin`, never with the product.
"""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from application.audit.export import verify_export
from application.audit.merkle import MerkleTree, StoredEventRow, merkle_root, pack_entries
from application.audit.seals import FIRST, AuditSeal
from infrastructure.audit.sealer import public_pem, verify_signature

STREAM = UUID("019b0000-0000-7000-8000-000000000001")
QUEUED = StoredEventRow(STREAM, 2, 7, "upload.queued", b'{"event":{}}')
BINARY = StoredEventRow(STREAM, 3, 9, "batch.\u00e4", b"\xff")

# Public keys of the first two test vectors of RFC 8032, section 7.1.
KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
NEXT_KEY = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
ROOT = b64decode("SvnD8EWLA5XOEVy6z5RE+9a1yK7acPvWa8Kbvi82EV8=")
SIGNATURE = (
    "IYKjaiLKTIqFZlLoU/3IQUBpN/LdDUQUYuetBaWpqvW8L7PapBGXmPAJELa2xEOJM7QeoTJAxOXW3/s3YPzpAg=="
)

FIRST_SEAL = AuditSeal(
    number=1,
    after=0,
    through=9,
    count=2,
    root=ROOT,
    previous=FIRST,
    at=datetime(2026, 1, 1, 12, tzinfo=UTC),
    key=KEY,
    signature=b64decode(SIGNATURE),
)
SECOND_SEAL = AuditSeal(
    number=2,
    after=9,
    through=9,
    count=0,
    root=b64decode("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
    previous=b64decode("2S7Xc9JZfog+ddu8pVop3MQLZzvQUDXjkQdHHw3T4tc="),
    at=datetime(2026, 1, 1, 12, 1, 0, 250_000, tzinfo=UTC),
    key=KEY,
    next_key=NEXT_KEY,
    signature=b64decode(
        "G4TyJ0xM7krh642CrGln41op7ERASxkKlLEDxhDTOP3JWKs5OOmNo7SRp+UV4Ans7B17CViEuslZe9NOWJaRAw=="
    ),
)
FIRST_STATEMENT = b"""uptrail seal 1
number 1
after 0
through 9
count 2
root SvnD8EWLA5XOEVy6z5RE+9a1yK7acPvWa8Kbvi82EV8=
previous AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
at 2026-01-01T12:00:00.000000Z
key 11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
next -
"""
SECOND_STATEMENT = b"""uptrail seal 1
number 2
after 9
through 9
count 0
root 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=
previous 2S7Xc9JZfog+ddu8pVop3MQLZzvQUDXjkQdHHw3T4tc=
at 2026-01-01T12:01:00.250000Z
key 11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
next PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=
"""


def test_the_digest_of_an_event_is_that_of_the_manual() -> None:
    assert QUEUED.entry.digest.hex() == (
        "2bc479cdde38245f31faa94fd42e5b8c5c2f3da36c1bcec58681a51872a41f4d"
    )
    assert BINARY.entry.digest.hex() == (
        "dcd9ab264bea3099530b6cd940f847ea0c1a2b803c0dee175a1f5bb07bd3ab00"
    )


def test_a_byte_that_moves_from_the_state_to_the_topic_changes_the_digest() -> None:
    moved = QUEUED._replace(topic="upload.queued{", state=b'"event":{}}')

    assert moved.topic.encode() + moved.state == QUEUED.topic.encode() + QUEUED.state
    assert moved.entry.digest.hex() == (
        "abaa8556c99f8735fa8151eb22d68db3710222955f5aec805cd41f9139da9a87"
    )


@pytest.mark.parametrize(
    "changed",
    [
        QUEUED._replace(stream=UUID("019b0000-0000-7000-8000-000000000002")),
        QUEUED._replace(version=3),
        QUEUED._replace(version=2 + 2**32),
        QUEUED._replace(topic="upload.Queued"),
        QUEUED._replace(state=b'{"event": {}}'),
    ],
    ids=["stream", "version", "high half of the version", "topic", "state"],
)
def test_each_part_of_an_event_changes_its_digest(changed: StoredEventRow) -> None:
    assert changed.entry.digest != QUEUED.entry.digest


def test_an_entry_is_a_position_and_a_digest() -> None:
    digests = (
        "0000000000000007" + QUEUED.entry.digest.hex(),
        "0000000000000009" + BINARY.entry.digest.hex(),
    )

    assert pack_entries([QUEUED.entry, BINARY.entry]).hex() == "".join(digests)


def test_the_root_and_the_audit_paths_are_those_of_rfc_6962() -> None:
    leaves = [bytes(QUEUED.entry), bytes(BINARY.entry)]
    tree = MerkleTree(leaves)

    assert merkle_root(leaves) == ROOT
    assert tree.path(0) == (b64decode("WdLMbKBJOnOqfuBY/RKW60u79IXdghklBSJTSD+VNsI="),)
    assert tree.path(1) == (b64decode("XfZLBS0HzWgzR9ow/YeCAiCrE2IuR8X0sQiBoZCOlz4="),)


@pytest.mark.parametrize(
    ("seal", "statement", "digest"),
    [
        (FIRST_SEAL, FIRST_STATEMENT, SECOND_SEAL.previous),
        (
            SECOND_SEAL,
            SECOND_STATEMENT,
            b64decode("SCjq7zmnYGg+o/nwakJDiTf5t9755IPb7z2N6iyd8es="),
        ),
    ],
    ids=["first seal", "seal that names the next key"],
)
def test_the_bytes_of_a_seal_are_those_of_the_manual(
    seal: AuditSeal, statement: bytes, digest: bytes
) -> None:
    assert seal.statement() == statement
    assert seal.digest == digest


def test_a_seal_states_its_time_in_utc() -> None:
    east = datetime.fromisoformat("2026-01-01T17:30:00+05:30")

    assert msgspec.structs.replace(FIRST_SEAL, at=east).statement() == FIRST_STATEMENT


@pytest.mark.parametrize("seal", [FIRST_SEAL, SECOND_SEAL], ids=["first", "second"])
def test_a_signature_made_by_openssl_is_valid(seal: AuditSeal) -> None:
    assert verify_signature(seal)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"after": 1},
        {"through": 10},
        {"count": 1},
        {"root": bytes(32)},
        {"previous": b"\1" * 32},
        {"at": datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC)},
        {"next_key": NEXT_KEY},
        {"key": NEXT_KEY},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_field_of_a_seal_is_outside_of_its_signature(change: dict[str, object]) -> None:
    assert not verify_signature(msgspec.structs.replace(FIRST_SEAL, **change))


def test_the_public_key_is_a_pem_that_other_programs_read() -> None:
    """Computed by `openssl pkey -pubout` from the private key of the test vector."""
    assert public_pem(KEY) == (
        "-----BEGIN PUBLIC KEY-----\n"
        "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n"
        "-----END PUBLIC KEY-----\n"
    )


SEAL_JSON = (
    b'{"number":1,"after":0,"through":9,"count":2,'
    b'"root":"SvnD8EWLA5XOEVy6z5RE+9a1yK7acPvWa8Kbvi82EV8=",'
    b'"previous":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","at":"2026-01-01T12:00:00Z",'
    b'"key":"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=","signature":"'
    + SIGNATURE.encode()
    + b'"}'
)
ENTRIES = (
    b"AAAAAAAAAAcrxHnN3jgkXzH6qU/ULluMXC89o2wbzsWGgaUYcqQfTQAA"
    b"AAAAAAAJ3NmrJkvqMJlTC2zZQPhH6gwaK4A8De4XWh9bsHvTqwA="
)
FIRST_EVENT = (
    b'{"type":"event","position":7,"stream":"019b0000-0000-7000-8000-000000000001","version":2,'
    b'"topic":"upload.queued","state":"{\\"event\\":{}}"'
)
SECOND_EVENT = (
    b'{"type":"event","position":9,"stream":"019b0000-0000-7000-8000-000000000001","version":3,'
    b'"topic":"batch.\xc3\xa4","state_base64":"/w=="'
)
WHOLE_EXPORT = [
    b'{"type":"export","format":1,"of":"everything","whole":true,"after":0}',
    b'{"type":"seal","seal":' + SEAL_JSON + b',"entries":"' + ENTRIES + b'"}',
    FIRST_EVENT + b"}",
    SECOND_EVENT + b"}",
]
EXPORT_OF_ONE = [
    b'{"type":"export","format":1,"of":"upload 019b","whole":false,"after":0}',
    b'{"type":"seal","seal":' + SEAL_JSON + b"}",
    FIRST_EVENT + b',"seal":1,"index":0,"path":["WdLMbKBJOnOqfuBY/RKW60u79IXdghklBSJTSD+VNsI="]}',
    SECOND_EVENT + b',"seal":1,"index":1,"path":["XfZLBS0HzWgzR9ow/YeCAiCrE2IuR8X0sQiBoZCOlz4="]}',
]

exports = pytest.mark.parametrize(
    "lines", [WHOLE_EXPORT, EXPORT_OF_ONE], ids=["everything", "one upload"]
)


@exports
def test_an_export_written_by_hand_is_sound(lines: list[bytes]) -> None:
    found = verify_export(lines, {KEY}, verify_signature)

    assert found.findings == []
    assert (found.events, found.unsealed, found.last_seal, found.through) == (2, 0, 1, 9)


@exports
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"position":7', b'"position":8'),
        (b'"version":2', b'"version":4'),
        (b"000000000001", b"000000000002"),
        (b"upload.queued", b"upload.expired"),
        (b'"{\\"event\\":{}}"', b'"{\\"event\\": {}}"'),
        (b'"/w=="', b'"/g=="'),
    ],
    ids=["position", "version", "stream", "topic", "text", "bytes"],
)
def test_a_changed_event_of_an_export_is_found(lines: list[bytes], old: bytes, new: bytes) -> None:
    changed = [line.replace(old, new) for line in lines]

    assert changed != lines
    assert verify_export(changed, {KEY}, verify_signature).findings != []
