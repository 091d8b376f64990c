from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from application.audit.seals import AuditSeal
from infrastructure.audit import sealer
from infrastructure.audit.sealer import (
    InvalidKeyFile,
    ensure_key,
    page,
    read_key,
    seal_at_intervals,
    verify_signature,
)
from tests.infrastructure.audit.harness import AuditHarness, open_audit_harness, sealer_in
from tests.infrastructure.event_store.log_support import connected
from tests.support import eventually


async def read_seals(url: str) -> list[AuditSeal]:
    async with connected(url) as connection:
        return await page(connection, 0, 100)


async def test_a_seal_covers_what_was_recorded_since_the_last(
    database_url: str, tmp_path: Path
) -> None:
    async with open_audit_harness(database_url, tmp_path) as audit:
        await audit.record(4, 5)
        first = await audit.seal()
        await audit.record(6)
        second = await audit.seal()

    assert (first.number, first.after, first.through, first.count) == (1, 0, 9, 9)
    assert (second.number, second.after, second.through, second.count) == (2, 9, 15, 6)
    assert second.previous == first.digest
    assert verify_signature(first)
    assert verify_signature(second)
    assert await read_seals(database_url) == [first, second]


async def test_no_seal_is_made_without_new_events(audit: AuditHarness) -> None:
    await audit.record(1)
    await audit.seal()
    assert await audit.sealer.seal(audit.connection) is None


async def test_work_for_one_seal_is_bounded(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealer, "MAX_SEAL_EVENTS", 4)
    monkeypatch.setattr(sealer, "EVENTS_PER_READ", 3)

    async with open_audit_harness(database_url, tmp_path) as audit:
        await audit.record(9)
        assert [(await audit.seal()).count for _ in range(3)] == [4, 4, 1]


async def test_an_append_does_not_wait_for_a_seal_that_is_being_made(audit: AuditHarness) -> None:
    await audit.record(1)
    async with audit.connection.transaction():
        await audit.sealer.seal(audit.connection)  # not committed yet
        assert await audit.record(1) == 2


async def test_two_that_seal_at_once_make_one_chain(database_url: str, tmp_path: Path) -> None:
    async with (
        open_audit_harness(database_url, tmp_path) as audit,
        connected(database_url) as other,
    ):
        for _ in range(5):
            await audit.record(2)
            again = sealer_in(tmp_path)
            await asyncio.gather(audit.sealer.seal(audit.connection), again.seal(other))
        assert (await audit.check()).sound
    assert [seal.number for seal in await read_seals(database_url)] == [1, 2, 3, 4, 5]


async def test_one_of_many_machines_seals_and_another_takes_over(
    database_url: str, tmp_path: Path, audit: AuditHarness
) -> None:
    async def sealed(audit: AuditHarness, through: int) -> None:
        async def reaches() -> bool:
            seals = await page(audit.connection, 0, 100)
            return bool(seals) and seals[-1].through == through

        await eventually(reaches)

    sealers = [
        asyncio.create_task(seal_at_intervals(database_url, sealer_in(tmp_path), 0.01))
        for _ in range(2)
    ]
    try:
        await sealed(audit, await audit.record(2))
        sealers[0].cancel()
        await sealed(audit, await audit.record(2))
    finally:
        sealers[1].cancel()
        await asyncio.gather(*sealers, return_exceptions=True)
    assert (await audit.check()).sound


def test_the_seal_key_is_made_once_and_readable_only_by_its_user(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "seal.key"

    made = ensure_key(file)

    assert ensure_key(file).public == made.public
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["seal.key"]


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_a_key_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    file = tmp_path / "seal.key"
    ensure_key(file)
    file.chmod(0o644)

    read_key(file)

    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_without_a_key_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "seal.key"
    file.write_text("secret")
    file.chmod(0o600)

    with pytest.raises(InvalidKeyFile, match=r"seal\.key holds no private key"):
        ensure_key(file)


async def test_a_rotated_key_signs_from_the_next_seal_on(audit: AuditHarness) -> None:
    await audit.record(2)
    first = await audit.seal()
    first_of_new = await audit.sealer.rotate(audit.connection)
    _, last_of_old, _ = await page(audit.connection, 0, 10)

    assert last_of_old.key == first.key
    assert last_of_old.next_key == first_of_new.key == audit.key.public
    assert first_of_new.key != first.key
    assert (await audit.check()).sound
    await audit.record(2)
    await audit.seal()
    assert (await audit.check(trusted=[first.key])).sound
    assert (await audit.check(trusted=[first_of_new.key])).sound


async def test_a_seal_key_not_announced_by_its_predecessor_is_reported(audit: AuditHarness) -> None:
    await audit.record(2)
    first = await audit.seal()
    audit.sealer.key_file.unlink()
    await audit.record(2)
    await audit.seal()
    found = await audit.check(trusted=[first.key])
    assert [(one.kind, one.seal) for one in found.findings] == [("key_unknown", 2)]


async def test_a_seal_that_the_database_lost_leaves_a_hole_for_ever(audit: AuditHarness) -> None:
    """A removed last seal is not replaced by the next one."""

    await audit.record(2)
    await audit.seal()
    await audit.record(2)
    await audit.seal()
    audit.by_hand("DELETE FROM audit.seals WHERE number = 2")
    await audit.record(2)
    third = await audit.seal()
    assert (third.number, third.after, third.count) == (3, 2, 4)
    found = await audit.check(remembers=False)
    assert [one.detail for one in found.findings] == ["seal 2 is missing"]
