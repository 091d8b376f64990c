"""Keys, marks and the folders of the embedded server after a power loss at any point."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from application.audit.seals import AuditSeal
from infrastructure import files
from infrastructure.audit.sealer import LastSealFile, SealKey, ensure_key, write_key
from infrastructure.erasure.master_keys import (
    FileMasterKeys,
    NoMasterKey,
    OwnerKeyCopies,
    OwnerKeyCopy,
)
from infrastructure.files import write_file_atomically
from infrastructure.postgres.embedded import data_directory
from infrastructure.postgres.embedded.cluster import Cluster
from infrastructure.postgres.embedded.data_directory import ServerDir, resolve_server_dir
from infrastructure.postgres.embedded.system import SystemUser
from tests.power_loss import RecordingDisk
from tests.support import run

OURSELVES = SystemUser(os.geteuid(), os.getegid())


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordingDisk:
    (tmp_path / "disk").mkdir()
    return RecordingDisk(tmp_path / "disk").install(monkeypatch)


def check_every_state(disk: RecordingDisk, check: Callable[[int], None], least: int) -> None:
    """Lose the power at every point; bring the folder into every state; check each.

    `check` gets the number of operations before the power loss.
    """
    assert disk.written().listing() == disk.actual()
    states = [state for at in range(disk.position + 1) for state in disk.states(at)]
    assert len(states) >= least
    disk.lose_power()
    for state in states:
        state.tree.materialise(disk.root)
        check(state.at)


def test_a_file_written_atomically_is_the_old_or_the_new_one(disk: RecordingDisk) -> None:
    file = disk.root / "made" / "here" / "file"
    old, new = b"o" * 5_000, b"n" * 700
    assert write_file_atomically(file, old, replace=False)
    first = disk.position
    assert write_file_atomically(file, new)
    second = disk.position
    assert not write_file_atomically(file, old, replace=False)

    def check(at: int) -> None:
        found = file.read_bytes() if file.exists() else None
        if at >= second:
            assert found == new
        elif at >= first:
            assert found in (old, new)
        else:
            assert found in (None, old)
        write_file_atomically(file, b"again")
        assert file.read_bytes() == b"again"

    check_every_state(disk, check, 40)


def test_a_file_that_another_process_wrote_is_durable_before_it_is_relied_on(
    disk: RecordingDisk,
) -> None:
    """The other process was killed between giving the name and syncing the folder."""
    file = disk.root / "file"
    disk.fail_next("sync_folder")
    with pytest.raises(OSError):
        write_file_atomically(file, b"theirs", replace=False)
    assert not write_file_atomically(file, b"ours", replace=False)
    relied = disk.position

    def check(at: int) -> None:
        if at >= relied:
            assert file.read_bytes() == b"theirs"

    check_every_state(disk, check, 10)


def test_a_signing_key_is_the_same_once_it_was_used(disk: RecordingDisk) -> None:
    """Also if the process that made it was killed before the key was durable."""
    file = disk.root / "keys" / "seal.key"
    files.make_folder(file.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync_folder", _killed)
        with pytest.raises(KeyboardInterrupt):
            write_key(file, SealKey.new(), replace=False)
    key, used = ensure_key(file).pem(), disk.position

    def check(at: int) -> None:
        found = ensure_key(file).pem()
        if at >= used:
            assert found == key

    check_every_state(disk, check, 10)


def _killed(folder: Path) -> None:
    raise KeyboardInterrupt


def a_seal(number: int) -> AuditSeal:
    return AuditSeal(
        number=number,
        after=number - 1,
        through=number,
        count=1,
        root=bytes(32),
        previous=bytes(32),
        at=datetime.now(UTC),
        key=bytes(32),
    )


def test_the_last_seal_is_remembered(disk: RecordingDisk) -> None:
    file = LastSealFile(disk.root / "seal.last")
    saved = []
    for number in (1, 2):
        file.save(a_seal(number))
        saved.append((disk.position, number))

    def check(at: int) -> None:
        least = max((number for position, number in saved if position <= at), default=0)
        seen = file.seen()
        assert (seen.number if seen else 0) in (least, least + 1)

    check_every_state(disk, check, 15)


def test_a_master_key_opens_what_it_encrypted_until_it_is_destroyed_for_good(
    disk: RecordingDisk,
) -> None:
    keys = FileMasterKeys(disk.root / "master-keys")
    id = run(keys.create())
    made = disk.position
    content = (keys.folder / f"{id}.key").read_bytes().strip()
    (sealed,) = run(keys.encrypt(id, [b"an owner's key"]))
    asked = disk.position
    run(keys.destroy(id))
    destroyed = disk.position

    def check(at: int) -> None:
        if at < destroyed:
            with suppress(NoMasterKey):
                assert run(keys.decrypt(id, [sealed])) == [b"an owner's key"]
        if made <= at <= asked:
            assert run(keys.decrypt(id, [sealed])) == [b"an owner's key"]
        if at >= destroyed:
            with pytest.raises(NoMasterKey):
                run(keys.decrypt(id, [sealed]))
            assert not (keys.folder / f"{id}.key").exists()
            assert not any(content in each.read_bytes() for each in disk.root.rglob("*.key*"))
        if keys.folder.exists():
            run(keys.destroy(id))
        assert len(run(keys.encrypt(run(keys.create()), [b"x"]))) == 1

    check_every_state(disk, check, 20)


def test_a_destroyed_master_key_is_overwritten_before_its_name_goes(disk: RecordingDisk) -> None:
    """A name may come back with a power loss; the key may not."""
    keys = FileMasterKeys(disk.root)
    id = run(keys.create())
    content = (keys.folder / f"{id}.key").read_bytes()
    run(keys.destroy(id))

    def check(at: int) -> None:
        if at == disk.position - 1:  # before the sync of the folder returned
            assert not any(content in each.read_bytes() for each in disk.root.iterdir())

    check_every_state(disk, check, 10)


def test_one_copy_of_the_owners_keys_is_there_at_any_time(disk: RecordingDisk) -> None:
    copies = OwnerKeyCopies(disk.root)
    for master in ("first", "second"):
        copies.write(OwnerKeyCopy(master, b"proof", ["zero"], []))
        if master == "first":
            made = disk.position

    def check(at: int) -> None:
        if at >= made:
            assert copies.replacing("zero") is not None

    check_every_state(disk, check, 15)


# The embedded server: its programs are replaced by what they leave on the disk.


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ServerDir]:
    """Resolve the folder of the server and make its cluster ready, as a start does."""

    def make_cluster(cluster: Cluster, unfinished: Path) -> None:
        data = unfinished / "data"
        files.make_folder(data)
        write_file_atomically(data / "PG_VERSION", b"18\n")
        write_file_atomically(data / "identity", secrets.token_hex(8).encode())

    def execute(cluster: Cluster, data: Path, statements: str, database: str = "") -> None:
        if "PASSWORD" in statements:
            password = statements.split("PASSWORD '")[1].split("'")[0]
            write_file_atomically(data / "role-password", password.encode())

    monkeypatch.setattr(Cluster, "_initdb", make_cluster)
    monkeypatch.setattr(Cluster, "_execute", execute)

    def start(data_dir: Path) -> ServerDir:
        home = resolve_server_dir(data_dir, OURSELVES)
        Cluster(home, OURSELVES, Path("bin"), 0).make_ready()
        return home

    return start


def accepts_us(home: ServerDir) -> bool:
    return home.password.read_bytes().strip() == (home.cluster / "role-password").read_bytes()


def test_a_database_that_was_started_once_is_the_same_after_a_power_loss(
    disk: RecordingDisk, start: Callable[[Path], ServerDir]
) -> None:
    data_dir = disk.root / "var" / "data"
    home = start(data_dir)
    started, identity = disk.position, (home.cluster / "identity").read_bytes()

    def check(at: int) -> None:
        again = start(data_dir)
        assert accepts_us(again)
        if at >= started:
            assert (again.cluster / "identity").read_bytes() == identity

    check_every_state(disk, check, 120)


def test_a_lost_password_is_replaced_or_can_be_replaced_again(
    disk: RecordingDisk, start: Callable[[Path], ServerDir]
) -> None:
    data_dir = disk.root / "data"
    home = start(data_dir)
    home.password.unlink()
    disk.lose_power()
    again = RecordingDisk(disk.root)
    identity = (home.cluster / "identity").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        again.install(patch)
        start(data_dir)

    def check(at: int) -> None:
        found = start(data_dir)
        assert accepts_us(found)
        assert (found.cluster / "identity").read_bytes() == identity

    check_every_state(again, check, 30)


def test_a_link_to_the_folder_of_the_server_never_leads_nowhere(
    disk: RecordingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root the folder is in the system's, and a link to nowhere is reported as a loss."""
    system = disk.root / "var" / "uptrail"
    another = SystemUser(OURSELVES.uid + 1, OURSELVES.gid + 1)

    def system_folder() -> Path:
        files.make_folder(system)
        return system

    monkeypatch.setattr(data_directory, "system_folder", system_folder)
    monkeypatch.setattr(
        SystemUser, "can_enter", lambda _, folder: folder.is_relative_to(system / "clusters")
    )
    made = data_directory.tempfile.mkdtemp

    def mkdtemp(prefix: str, dir: Path) -> str:
        place = made(prefix=prefix, dir=dir)
        os.rmdir(place)
        files.mkdir(place, 0o700)
        return place

    monkeypatch.setattr(data_directory.tempfile, "mkdtemp", mkdtemp)
    data_dir = disk.root / "root" / "data"
    home = resolve_server_dir(data_dir, another)
    resolved = disk.position

    def check(at: int) -> None:
        found = resolve_server_dir(data_dir, another)
        if at >= resolved:
            assert found == home

    check_every_state(disk, check, 40)
