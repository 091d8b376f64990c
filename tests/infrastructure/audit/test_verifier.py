"""SQL alters the log; verification names the kind of change and its position."""

from __future__ import annotations

from pathlib import Path

import pytest

from application.audit.merkle import pack_entries
from infrastructure.audit import sealer, verifier
from infrastructure.audit.verifier import SealVerification
from tests.infrastructure.audit.harness import AuditHarness, open_audit_harness

EVENTS = (4, 5, 6)  # of the streams that are recorded before and between the seals


async def checked_after(url: str, folder: Path, *statements: str) -> SealVerification:
    """Positions 1 to 15 are sealed, 1 to 9 and 10 to 15; then this is done by hand."""
    async with open_audit_harness(url, folder) as audit:
        await two_seals(audit)
        for statement in statements:
            audit.by_hand(statement)
        return await audit.check()


async def two_seals(audit: AuditHarness) -> None:
    await audit.record(*EVENTS[:2])
    await audit.seal()
    await audit.record(EVENTS[2])
    await audit.seal()


def findings(found: SealVerification) -> list[tuple[str, int, int]]:
    return [(one.kind, one.position, one.seal) for one in found.findings]


async def test_an_untouched_log_is_as_it_was_sealed(database_url: str, tmp_path: Path) -> None:
    found = await checked_after(database_url, tmp_path)

    assert found.sound
    assert (found.seals, found.events, found.through, found.unsealed) == (2, 15, 15, 0)


async def test_events_after_the_last_seal_are_counted_as_unsealed(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as audit:
        await two_seals(audit)
        await audit.record(3)
        found = await audit.check()

    assert found.sound
    assert (found.through, found.unsealed) == (15, 3)


@pytest.mark.parametrize(
    "change",
    [
        "state = replace(encode(state, 'escape'), 'key:alice', 'key:mallo')::bytea",
        "topic = 'upload.cancelled'",
        "originator_id = gen_random_uuid()",
        "originator_version = 99",
    ],
)
async def test_an_event_that_was_altered_is_named(
    database_url: str, tmp_path: Path, change: str
) -> None:
    found = await checked_after(
        database_url,
        tmp_path,
        f"UPDATE stored_events SET {change} WHERE notification_id = 7",
    )

    assert findings(found) == [("altered", 7, 1)]


async def test_an_event_that_was_removed_is_named(database_url: str, tmp_path: Path) -> None:
    found = await checked_after(
        database_url, tmp_path, "DELETE FROM stored_events WHERE notification_id = 12"
    )

    assert findings(found) == [("removed", 12, 2)]


@pytest.mark.parametrize("position", [-5, 0])
async def test_an_event_that_was_put_before_the_first_is_named(
    database_url: str, tmp_path: Path, position: int
) -> None:
    found = await checked_after(database_url, tmp_path, put_in(position))

    assert findings(found) == [("inserted", position, 1)]


async def test_an_event_that_was_put_in_is_named(database_url: str, tmp_path: Path) -> None:
    """Positions are dense here, so that room has to be made: the neighbour moves, and is named."""
    found = await checked_after(
        database_url,
        tmp_path,
        "DELETE FROM stored_events WHERE notification_id = 12",
        put_in(12),
    )

    assert findings(found) == [("altered", 12, 2)]


async def test_an_event_between_two_positions_is_named(audit: AuditHarness) -> None:
    await audit.record(3)
    audit.by_hand("SELECT setval('stored_events_notification_id_seq', 10)")
    await audit.record(3)
    await audit.seal()
    audit.by_hand(put_in(7))
    assert findings(await audit.check()) == [("inserted", 7, 1)]


async def test_swapped_events_are_named(database_url: str, tmp_path: Path) -> None:
    found = await checked_after(
        database_url,
        tmp_path,
        "UPDATE stored_events SET notification_id = -1 WHERE notification_id = 11",
        "UPDATE stored_events SET notification_id = 11 WHERE notification_id = 13",
        "UPDATE stored_events SET notification_id = 13 WHERE notification_id = -1",
    )

    assert findings(found) == [("reordered", 11, 2), ("reordered", 13, 2)]


async def test_a_verification_reports_the_first_fault_first_and_a_bounded_number_of_others(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "MAX_FINDINGS", 3)

    found = await checked_after(
        database_url, tmp_path, "UPDATE stored_events SET topic = 'x' WHERE notification_id > 5"
    )

    assert findings(found) == [("altered", 6, 1), ("altered", 7, 1), ("altered", 8, 1)]


async def test_many_seals_and_pages_are_walked_to_the_end(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealer, "EVENTS_PER_READ", 2)
    monkeypatch.setattr(verifier, "EVENTS_PER_EXPORT_CHUNK", 2)
    monkeypatch.setattr(verifier, "SEALS_PER_QUERY", 2)
    monkeypatch.setattr(sealer, "MAX_SEAL_EVENTS", 3)

    async with open_audit_harness(database_url, tmp_path) as audit:
        await audit.record(8, 6)
        while await audit.sealer.seal(audit.connection):
            pass
        audit.by_hand("DELETE FROM stored_events WHERE notification_id = 14")
        found = await audit.check()

    assert (found.seals, found.events) == (5, 14)
    assert findings(found) == [("removed", 14, 5)]


async def test_a_seal_that_was_altered_is_named(database_url: str, tmp_path: Path) -> None:
    found = await checked_after(
        database_url, tmp_path, "UPDATE audit.seals SET at = now() WHERE number = 2"
    )

    assert ("seal_altered", 10, 2) in findings(found)


async def test_a_seal_that_was_taken_out_is_named(database_url: str, tmp_path: Path) -> None:
    found = await checked_after(database_url, tmp_path, "DELETE FROM audit.seals WHERE number = 1")

    assert [one.detail for one in found.findings] == ["seal 1 is missing"]


async def test_the_list_of_a_seal_does_not_hide_an_altered_event(
    database_url: str, tmp_path: Path
) -> None:
    """The event and what the seal's list says of it are changed to fit: the root does not."""

    async with open_audit_harness(database_url, tmp_path) as audit:
        await two_seals(audit)
        audit.by_hand("UPDATE stored_events SET topic = 'x' WHERE notification_id = 7")
        await forge_list(audit)
        (finding,) = (await audit.check()).findings
    assert (finding.kind, finding.seal) == ("list_altered", 1)
    assert "events at positions 1 to 9 were altered" in finding.detail


async def test_a_list_that_was_altered_alone_accuses_no_event(
    database_url: str, tmp_path: Path
) -> None:
    found = await checked_after(
        database_url, tmp_path, "UPDATE audit.seals SET entries = '' WHERE number = 1"
    )

    assert ("list_altered", 1, 1) in findings(found)
    assert any("the events are those it covers" in one.detail for one in found.findings)


async def test_the_last_seal_is_missed_by_the_machine_that_made_it(
    database_url: str, tmp_path: Path
) -> None:
    found = await checked_after(database_url, tmp_path, "DELETE FROM audit.seals WHERE number = 2")

    (finding,) = found.findings
    assert (finding.kind, finding.position, finding.seal) == ("seal_missing", 10, 2)


async def test_a_removed_last_seal_is_detected_with_a_kept_copy(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as audit:
        await audit.record(3)
        kept = [await audit.seal()]
        await audit.record(3)
        kept.append(await audit.seal())
        audit.by_hand("DELETE FROM audit.seals WHERE number = 2")
        audit.by_hand("DELETE FROM stored_events WHERE notification_id > 3")
        alone = await audit.check(remembers=False)
        beside = await audit.check(remembers=False, kept=kept)

    assert alone.sound  # which is why seals are to be kept elsewhere
    assert findings(beside) == [("seal_missing", 4, 2)]


async def test_a_chain_that_was_made_anew_is_not_that_which_was_kept(
    database_url: str, tmp_path: Path
) -> None:
    """An attacker with the key rewrites the whole chain; only a kept copy reveals it."""

    async with open_audit_harness(database_url, tmp_path) as audit:
        await audit.record(3)
        kept = [await audit.seal()]
        audit.by_hand("DELETE FROM audit.seals")
        audit.by_hand("UPDATE stored_events SET topic = 'x' WHERE notification_id = 2")
        (tmp_path / "seal.last").unlink()
        await audit.seal()
        alone, beside = await audit.check(), await audit.check(kept=kept)

    assert alone.sound
    assert findings(beside) == [("seal_altered", 1, 1)]


def put_in(position: int) -> str:
    return (
        "INSERT INTO stored_events SELECT gen_random_uuid(), 1, topic, state, "
        f"{position} FROM stored_events WHERE notification_id = 1"
    )


async def forge_list(audit: AuditHarness) -> None:
    events = await sealer.events(audit.connection, 0, 9, 100)
    forged = pack_entries(stored.entry for stored in events)
    audit.by_hand("UPDATE audit.seals SET entries = %s WHERE number = 1", forged)
