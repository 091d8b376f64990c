"""Forged seals and events, each named from the database and from exports of it.

The forger may write to the database, and in some tests holds a signing key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import pytest

from application.audit.export import ExportedEvent, ExportedSeal, ExportHeader, Line, verify_export
from application.audit.merkle import merkle_root, pack_entries
from application.audit.seals import AuditSeal, Finding
from infrastructure.audit import sealer, verifier
from infrastructure.audit.sealer import SealKey, verify_signature
from infrastructure.audit.verifier import PostgresSeals
from infrastructure.postgres.pool import make_pool
from tests.infrastructure.audit.harness import AuditHarness, open_audit_harness

Named: TypeAlias = list[tuple[str, int, int]]  # kind, position and seal of findings

LAST = 1_000  # a position beyond all events of these tests


class Found(NamedTuple):
    """The findings from the database, a whole export, and one with a proof for each event."""

    database: list[Finding]
    whole: list[Finding]
    proofs: list[Finding]


async def findings(it: AuditHarness, kept: Sequence[AuditSeal] = ()) -> Found:
    """Verify in every way, without what this machine remembers of its last seal."""
    database = await it.check(kept=kept, remembers=False)
    return Found(
        database.findings,
        checked(it, await whole_export(it), kept),
        checked(it, await export_of_each(it), kept),
    )


def checked(
    it: AuditHarness, lines: Iterable[Line], kept: Sequence[AuditSeal] = ()
) -> list[Finding]:
    encoded = map(msgspec.json.encode, lines)
    return verify_export(encoded, [it.key.public], verify_signature, kept).findings


async def whole_export(it: AuditHarness) -> list[Line]:
    async with make_pool(it.url, name="seals", max_size=2) as pool:
        chunks = [chunk async for chunk in PostgresSeals(pool).export_chunks(0)]
    return [
        ExportHeader(of="everything", whole=True),
        *(line for chunk in chunks for line in chunk),
    ]


async def export_of_each(it: AuditHarness) -> list[Line]:
    """Each event with its own path, as the export of a batch has it."""
    events = await sealer.events(it.connection, -LAST, LAST, LAST)
    positions = [event.position for event in events]
    async with make_pool(it.url, name="seals", max_size=2) as pool:
        prover = PostgresSeals(pool).proofs()
        lines = [await prover.proofs_for([position]) for position in positions]
    return [
        ExportHeader(of="a batch", whole=False),
        *(line for chunk in lines for line in chunk),
    ]


def named(findings: Iterable[Finding]) -> Named:
    return [(one.kind, one.position, one.seal) for one in findings]


def details(findings: Iterable[Finding]) -> set[str]:
    return {one.detail for one in findings}


async def three_seals(it: AuditHarness) -> list[AuditSeal]:
    """Positions 1 to 4, 5 to 9 and 10 to 12."""
    seals = []
    for count in (4, 5, 3):
        await it.record(count)
        seals.append(await it.seal())
    return seals


async def sealed_by(
    it: AuditHarness, key: SealKey, seal: AuditSeal, **changes: Any
) -> tuple[AuditSeal, bytes]:
    """The seal with these changes, over the events as they are now, signed by this key."""
    changed = msgspec.structs.replace(seal, key=key.public, **changes)
    events = await sealer.events(it.connection, changed.after, changed.through, LAST)
    entries = [event.entry for event in events]
    root = merkle_root(map(bytes, entries))
    changed = msgspec.structs.replace(changed, root=root, count=len(entries))
    signed = msgspec.structs.replace(changed, signature=key.sign(changed.statement()))
    return signed, pack_entries(entries)


async def replace_seal(it: AuditHarness, seal: AuditSeal, entries: bytes) -> None:
    with suppress(AssertionError):  # there may be none yet
        it.by_hand("DELETE FROM audit.seals WHERE number = %s", seal.number)
    await sealer.insert(it.connection, seal, entries)


async def test_nothing_is_found_in_an_untouched_log(database_url: str, tmp_path: Path) -> None:
    async with open_audit_harness(database_url, tmp_path) as it:
        await three_seals(it)
        await it.sealer.rotate(it.connection)
        await it.record(2)
        await it.seal()
        await it.record(2)

        assert await findings(it) == ([], [], [])


async def test_an_event_slipped_in_between_two_seals_is_named(
    database_url: str, tmp_path: Path
) -> None:
    """Seal 1 ends at position 4, and the first event of seal 2 is at 21."""
    async with open_audit_harness(database_url, tmp_path) as it:
        await it.record(4)
        await it.seal()
        it.by_hand("SELECT setval('stored_events_notification_id_seq', 20)")
        await it.record(3)
        await it.seal()
        it.by_hand(
            "INSERT INTO stored_events SELECT gen_random_uuid(), 1, topic, state, 12"
            " FROM stored_events WHERE notification_id = 1"
        )
        found = await findings(it)

    assert [named(each) for each in found] == [[("inserted", 12, 2)]] * 3


async def test_a_gap_between_the_ranges_of_two_seals_is_named(
    database_url: str, tmp_path: Path
) -> None:
    """A holder of the key signs a range that leaves two events out, and all seals after it."""
    async with open_audit_harness(database_url, tmp_path) as it:
        _, second, third = await three_seals(it)
        second, entries = await sealed_by(it, it.key, second, after=6)
        await replace_seal(it, second, entries)
        await replace_seal(it, *await sealed_by(it, it.key, third, previous=second.digest))
        found = await findings(it)

    expected = "seal 2 does not follow seal 1"
    for each in found:
        assert expected in details(each)
    assert named(found.database) == [("seal_altered", 7, 2)]


async def test_a_seal_copied_under_the_next_number_is_named(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as it:
        first, *_ = await three_seals(it)
        entries = await sealer.entries_of(it.connection, 1)
        await replace_seal(it, msgspec.structs.replace(first, number=2), entries)
        found = await findings(it)

    for each in found[:2]:
        assert {"seal 2 is not what its key signed", "seal 2 does not follow seal 1"} <= details(
            each
        )
    assert found.proofs != []


@pytest.mark.parametrize("page", [1, 2, 100])
async def test_a_seal_that_is_there_twice_is_named(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Also where the copy is on the next page. An export has each number once."""
    monkeypatch.setattr(verifier, "SEALS_PER_PAGE", page)
    async with open_audit_harness(database_url, tmp_path) as it:
        await three_seals(it)
        await it.connection.execute("ALTER TABLE audit.seals DROP CONSTRAINT seals_pkey")
        await it.connection.execute("DROP INDEX audit.seals_through_number_idx")
        it.by_hand("INSERT INTO audit.seals SELECT * FROM audit.seals WHERE number = 2")
        found = await it.check(remembers=False)
        lines = await whole_export(it)
        assert checked(it, lines) == []
        copied = [*lines, next(line for line in lines if is_seal(line, 2))]

        assert "seal 2 comes after seal 2" in details(found.findings)
        assert "seal 2 comes after seal 3" in details(checked(it, copied))


async def test_a_seal_of_another_log_is_named(database_url: str, tmp_path: Path) -> None:
    """The same key seals both logs; the seal comes with its events."""
    async with open_audit_harness(database_url, tmp_path) as it:
        _, second, _ = await three_seals(it)
        it.by_hand("UPDATE stored_events SET topic = 'of.another' WHERE notification_id = 7")
        other = await sealed_by(it, it.key, second, previous=b"\1" * 32)
        await replace_seal(it, *other)
        found = await findings(it)

    for each in found:
        assert {"seal 2 does not follow seal 1", "seal 3 does not follow seal 2"} <= details(each)


async def test_a_seal_of_another_log_is_named_by_the_seals_that_were_kept(
    database_url: str, tmp_path: Path
) -> None:
    """An export of one batch leaves the seals between out, and with them the links."""
    async with open_audit_harness(database_url, tmp_path) as it:
        kept = await three_seals(it)
        it.by_hand("UPDATE stored_events SET topic = 'of.another' WHERE notification_id = 11")
        await replace_seal(it, *await sealed_by(it, it.key, kept[2], previous=b"\1" * 32))
        lines = [line for line in await export_of_each(it) if not is_of_seal(line, 2)]

        assert checked(it, lines) == []
        assert named(checked(it, lines, kept)) == [("seal_altered", 10, 3)]
        assert named(checked(it, lines, kept[:2])) == []


async def test_another_log_in_the_place_of_this_one_is_named_by_the_machine_that_sealed(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as it:
        await three_seals(it)
        seen = it.sealer.witness.seen()
        it.by_hand("DELETE FROM audit.seals")
        it.by_hand("UPDATE stored_events SET topic = 'of.another'")
        (tmp_path / "seal.last").rename(tmp_path / "kept")
        await it.seal()
        (tmp_path / "kept").rename(tmp_path / "seal.last")

        assert seen is not None
        assert (await it.check(remembers=False)).sound
        assert [one.kind for one in (await it.check()).findings] == ["seal_missing"]


async def test_a_seal_signed_again_by_another_key_is_named(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as it:
        _, second, _ = await three_seals(it)
        await replace_seal(it, *await sealed_by(it, SealKey.new(), second))
        found = await findings(it)

    for each in found:
        assert ("key_unknown", 5, 2) in named(each)
        assert "seal 3 does not follow seal 2" in details(each)


async def test_all_later_seals_signed_again_by_another_key_are_named(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as it:
        _, second, third = await three_seals(it)
        it.by_hand("UPDATE stored_events SET topic = 'x' WHERE notification_id = 7")
        key = SealKey.new()
        second, entries = await sealed_by(it, key, second)
        await replace_seal(it, second, entries)
        await replace_seal(it, *await sealed_by(it, key, third, previous=second.digest))
        found = await findings(it)

    assert [named(each) for each in found] == [[("key_unknown", 5, 2)]] * 3


@pytest.mark.parametrize("names_key", [False, True], ids=["names no key", "names the real key"])
@pytest.mark.parametrize("remembers", [True, False], ids=["with seal.last", "without seal.last"])
async def test_no_later_seal_confirms_a_last_seal_that_was_replaced(
    database_url: str, tmp_path: Path, remembers: bool, names_key: bool
) -> None:
    """An altered event under a forged last seal, which the server then continues."""
    async with open_audit_harness(database_url, tmp_path) as it:
        *_, third = await three_seals(it)
        it.by_hand("UPDATE stored_events SET topic = 'x' WHERE notification_id = 11")
        next_key = it.key.public if names_key else None
        await replace_seal(it, *await sealed_by(it, SealKey.new(), third, next_key=next_key))
        if not remembers:
            (tmp_path / "seal.last").unlink()
        await it.record(2)
        await it.seal()
        found = await findings(it)

    for each in found:
        assert ("key_unknown", 10, 3) in named(each)
        assert ("seal 4 does not follow seal 3" in details(each)) == remembers


async def test_a_seal_replaced_before_another_machine_sealed_is_not_confirmed(
    database_url: str, tmp_path: Path
) -> None:
    """This machine remembers seal 3; all seals from it on were made again, up to seal 4."""
    async with open_audit_harness(database_url, tmp_path) as it:
        *_, third = await three_seals(it)
        await it.record(2)
        key = it.key
        replaced, entries = await sealed_by(it, key, third, at=third.at.replace(year=2000))
        await replace_seal(it, replaced, entries)
        fourth = {"number": 4, "after": 12, "through": 14, "previous": replaced.digest}
        await replace_seal(it, *await sealed_by(it, key, third, **fourth))
        await it.record(2)
        await it.seal()
        found = await findings(it)

    for each in found:
        assert "seal 5 does not follow seal 4" in details(each)


async def test_events_that_were_renumbered_are_named(database_url: str, tmp_path: Path) -> None:
    """Positions 10 to 12 become 11 to 13; the last one is beyond all seals then."""
    async with open_audit_harness(database_url, tmp_path) as it:
        await three_seals(it)
        update = "UPDATE stored_events SET notification_id ="
        it.by_hand(f"{update} -notification_id WHERE notification_id > 9")
        it.by_hand(f"{update} 1 - notification_id WHERE notification_id < 0")
        found = await findings(it)

    moved = [("reordered", position, 3) for position in (10, 11, 12)]
    assert named(found.database) == named(found.whole) == moved
    assert named(found.proofs) == [("altered", 11, 3), ("altered", 12, 3)]


async def test_versions_that_were_renumbered_are_named(database_url: str, tmp_path: Path) -> None:
    async with open_audit_harness(database_url, tmp_path) as it:
        await three_seals(it)
        it.by_hand(
            "UPDATE stored_events SET originator_version = originator_version + 100"
            " WHERE notification_id BETWEEN 5 AND 9"
        )
        found = await findings(it)

    altered = [("altered", position, 2) for position in range(5, 10)]
    assert [named(each) for each in found] == [altered] * 3


async def test_a_missing_seal_does_not_hide_the_seals_after_it_from_an_export(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as it:
        await three_seals(it)
        it.by_hand("DELETE FROM audit.seals WHERE number = 2")
        it.by_hand("UPDATE stored_events SET topic = 'x' WHERE notification_id = 11")
        found = await findings(it)

    assert "seal 2 is missing" in details(found.database) & details(found.whole)
    uncovered: Named = [("inserted", position, 3) for position in range(5, 10)]
    assert named(found.proofs) == [*uncovered, ("altered", 11, 3)]


async def test_an_event_of_an_export_that_claims_to_be_under_no_seal_is_named(
    database_url: str, tmp_path: Path
) -> None:
    """Nothing is proven of it, so it must not stand among events that are sealed."""
    async with open_audit_harness(database_url, tmp_path) as it:
        await three_seals(it)
        lines = await export_of_each(it)

    for position, seal in ((2, 1), (4, 1), (7, 2), (12, 3)):
        claimed = [
            msgspec.structs.replace(line, topic="x", seal=0, index=None, path=None)
            if isinstance(line, ExportedEvent) and line.position == position
            else line
            for line in lines
        ]
        assert named(checked(it, claimed)) == [("inserted", position, seal)]


async def test_an_event_under_no_seal_before_the_first_seal_of_an_export_is_named(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as it:
        it.by_hand("SELECT setval('stored_events_notification_id_seq', 5)")
        await three_seals(it)
        whole, each = await whole_export(it), await export_of_each(it)

    for lines in (whole, each):
        event = next(line for line in lines if isinstance(line, ExportedEvent))
        bare = msgspec.structs.replace(event, position=1, seal=0, index=None, path=None)
        assert named(checked(it, [lines[0], bare, *lines[1:]])) == [("inserted", 1, 1)]


async def test_an_event_is_proven_only_by_a_seal_that_covers_its_position(
    database_url: str, tmp_path: Path
) -> None:
    """A holder of the key signs the same tree for another range."""
    async with open_audit_harness(database_url, tmp_path) as it:
        first, *_ = await three_seals(it)
        lines = await export_of_each(it)
        moved = msgspec.structs.replace(first, after=100, through=104)
        moved = msgspec.structs.replace(moved, number=2, signature=b"")
        moved = msgspec.structs.replace(moved, signature=it.key.sign(moved.statement()))
        events = [line for line in lines if isinstance(line, ExportedEvent) and line.seal == 1]
        claimed = [msgspec.structs.replace(event, seal=2) for event in events]

        found = checked(it, [lines[0], ExportedSeal(seal=moved), *claimed])

    assert named(found) == [("altered", position, 2) for position in (1, 2, 3, 4)]


def is_seal(line: Line, number: int) -> bool:
    return isinstance(line, ExportedSeal) and line.seal.number == number


def is_of_seal(line: Line, number: int) -> bool:
    return is_seal(line, number) or (isinstance(line, ExportedEvent) and line.seal == number)
