"""Hash trees and chains of seals; `tests/infrastructure/audit` alters a real log."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from application.audit.merkle import MerkleTree, merkle_root, root_from_path
from application.audit.seals import FIRST, AuditSeal, Finding, SealChain
from tests.builders import later

LEAVES = st.lists(st.binary(max_size=4), min_size=1, max_size=40)
KEY, NEXT, STRANGER = b"k" * 32, b"n" * 32, b"s" * 32


def test_the_root_is_that_of_rfc_6962() -> None:
    """The tree of the RFC's reference implementation over eight known leaves."""
    leaves = [
        bytes.fromhex(leaf)
        for leaf in (
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        )
    ]

    assert merkle_root([]) == sha256().digest()
    assert merkle_root(leaves).hex() == (
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    )


@given(LEAVES, st.data())
@settings(max_examples=100, deadline=None)
def test_every_leaf_has_a_path_to_the_root_and_nothing_else_has(
    leaves: list[bytes], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, root, count = MerkleTree(leaves).path(index), merkle_root(leaves), len(leaves)

    assert root_from_path(leaves[index], index, count, path) == root
    assert root_from_path(leaves[index] + b"!", index, count, path) != root
    assert root_from_path(leaves[index], index, count, (*path, FIRST)) is None
    assert root_from_path(leaves[index], count, count, path) is None


def test_a_chain_that_is_whole_and_trusted_is_sound() -> None:
    assert followed(*chain_of(3)) == []


def test_a_seal_that_was_taken_out_is_missed() -> None:
    first, _, third = chain_of(3)

    (finding,) = followed(first, third)

    assert (finding.kind, finding.detail) == ("seal_missing", "seal 2 is missing")
    assert finding.position == third.after + 1


def test_the_first_seals_are_missed_as_well() -> None:
    *_, last = chain_of(3)

    assert [one.detail for one in followed(last)] == ["seals 1 to 2 are missing"]


@pytest.mark.parametrize("field", ["after", "through", "count"])
def test_a_number_that_was_changed_breaks_the_signature(field: str) -> None:
    first, second, third = chain_of(3)
    forged = msgspec.structs.replace(second, **{field: getattr(second, field) + 1})

    findings = followed(first, forged, third)

    assert "seal 2 is not what its key signed" in [one.detail for one in findings]


def test_a_seal_by_an_unannounced_key_is_not_trusted() -> None:
    first, second = chain_of(2, keys=(KEY, STRANGER))

    (finding,) = followed(first, second)

    assert (finding.kind, finding.seal) == ("key_unknown", 2)


def test_a_key_that_a_trusted_seal_named_is_trusted() -> None:
    first = seal(None, next_key=NEXT)
    second = seal(first, key=NEXT)

    assert followed(first, second) == []


def test_a_trusted_key_confirms_the_keys_that_led_to_it() -> None:
    """The auditor holds the newest of three keys; each named the next one."""
    first = seal(None, key=STRANGER)
    second = seal(first, key=STRANGER, next_key=NEXT)
    third = seal(second, key=NEXT, next_key=KEY)

    assert followed(first, second, third, seal(third)) == []


def test_a_trusted_key_does_not_confirm_a_key_that_did_not_name_it() -> None:
    (finding,) = followed(*chain_of(3, keys=(STRANGER, STRANGER, KEY)))

    assert (finding.kind, finding.seal) == ("key_unknown", 1)


def test_a_key_that_was_not_named_is_not_confirmed_by_naming_a_trusted_one() -> None:
    """Whoever replaces the last seal may name the key that will sign the next one."""
    first = seal(None)
    forged = seal(first, key=STRANGER, next_key=KEY)

    (finding,) = followed(first, forged, seal(forged))

    assert (finding.kind, finding.seal) == ("key_unknown", 2)


def test_a_key_is_not_confirmed_over_absent_seals() -> None:
    """A forged seal of an export names the key that signed the next one given."""
    first = seal(None, key=STRANGER, next_key=KEY)
    *_, last = chain_of(4)
    chain = SealChain({KEY}, is_signed, gaps="anywhere")

    findings = [*chain.append(first), *chain.append(last), *chain.end()]

    assert [(one.kind, one.seal) for one in findings] == [("key_unknown", 1)]


def test_ranges_that_overlap_are_named_where_seals_may_be_absent() -> None:
    first, second, third, _ = chain_of(4)
    overlapping = msgspec.structs.replace(third, number=9, after=first.through)
    overlapping = msgspec.structs.replace(overlapping, signature=signature(overlapping))
    chain = SealChain({KEY}, is_signed, gaps="anywhere")

    findings = [one for each in (first, second, overlapping) for one in chain.append(each)]

    assert [one.detail for one in findings] == ["seal 9 covers positions that seal 2 covers"]


def test_a_trusted_seal_does_not_vouch_over_a_gap() -> None:
    first, _, third = chain_of(3, keys=(STRANGER, STRANGER, KEY))

    assert [one.kind for one in followed(first, third)] == ["key_unknown", "seal_missing"]


def chain_of(count: int, keys: tuple[bytes, ...] = ()) -> list[AuditSeal]:
    seals: list[AuditSeal] = []
    for index in range(count):
        seals.append(seal(seals[-1] if seals else None, key=keys[index] if keys else KEY))
    return seals


def seal(before: AuditSeal | None, *, key: bytes = KEY, next_key: bytes | None = None) -> AuditSeal:
    """Ten more events under a seal whose signature is a hash: any key signs anything here."""
    number, through = (before.number + 1, before.through) if before else (1, 0)
    made = AuditSeal(
        number=number,
        after=through,
        through=through + 10,
        count=10,
        root=sha256(bytes([number])).digest(),
        previous=before.digest if before else FIRST,
        at=later(number),
        key=key,
        next_key=next_key,
    )
    return msgspec.structs.replace(made, signature=signature(made))


def signature(seal: AuditSeal) -> bytes:
    return sha256(seal.key + seal.statement()).digest()


def is_signed(seal: AuditSeal) -> bool:
    return seal.signature == signature(seal)


def followed(*seals: AuditSeal) -> list[Finding]:
    chain = SealChain({KEY}, is_signed)
    findings = [finding for seal in seals for finding in chain.append(seal)]
    return [*findings, *chain.end()]
