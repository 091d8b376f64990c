"""Trees and chains by themselves; `tests/infrastructure/audit` alters a real log."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from application.audit.merkle import MerkleTree, merkle_root, root_from_path
from application.audit.seals import FIRST, AuditSeal, Finding, SealChain
from tests.stories import later

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


def test_a_seal_of_a_key_that_nobody_named_is_not_trusted() -> None:
    first, second = chain_of(2, keys=(KEY, STRANGER))

    (finding,) = followed(first, second)

    assert (finding.kind, finding.seal) == ("key_unknown", 2)


def test_a_key_that_a_trusted_seal_named_is_trusted() -> None:
    first = seal(None, next_key=NEXT)
    second = seal(first, key=NEXT)

    assert followed(first, second) == []


def test_a_trusted_seal_vouches_for_those_before_it() -> None:
    """Who trusts the newest key alone trusts the whole chain, but for what comes after."""
    assert followed(*chain_of(3, keys=(STRANGER, STRANGER, KEY))) == []


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


def followed(*seals: AuditSeal) -> list[Finding]:
    chain = SealChain({KEY}, lambda seal: seal.signature == signature(seal))
    findings = [finding for seal in seals for finding in chain.append(seal)]
    return [*findings, *chain.end()]
