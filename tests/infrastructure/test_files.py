"""The module that changes and syncs files, and the double that records what it is asked for."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infrastructure import files
from infrastructure.files import write_file_atomically
from tests.power_loss import RecordingDisk

PRODUCT = Path(__file__).parents[2]


@pytest.fixture(params=["real", "recorded"], autouse=True)
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RecordingDisk | None]:
    """Each test is run on the module itself and on its double, whose record must lead to the same.

    The patch of the double is undone with those of the test.
    """
    if request.param == "real":
        yield None
        return
    recording = RecordingDisk(tmp_path).install(monkeypatch)
    yield recording
    assert recording.written().listing() == recording.actual()


def test_a_written_file_has_its_content_and_mode_and_nothing_lies_beside_it(
    tmp_path: Path,
) -> None:
    secret, public = tmp_path / "made" / "secret", tmp_path / "made" / "public"

    assert write_file_atomically(secret, b"secret")
    assert write_file_atomically(public, b"old", mode=0o644)
    assert write_file_atomically(public, b"new", mode=0o644)

    assert secret.read_bytes() == b"secret"
    assert public.read_bytes() == b"new"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert public.stat().st_mode & 0o777 == 0o644
    assert secret.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(secret.parent.iterdir()) == [public, secret]


def test_an_existing_file_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    file = tmp_path / "key"
    assert write_file_atomically(file, b"first", replace=False)

    assert not write_file_atomically(file, b"second", replace=False)

    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    write_file_atomically(file, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", fail)
        with pytest.raises(OSError, match="No space left"):
            write_file_atomically(file, b"new")

    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_bytes_are_written_where_they_belong(tmp_path: Path) -> None:
    file = tmp_path / "file"
    descriptor = files.open_file(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    assert list(files.write_all(descriptor, memoryview(b"0123456789"))) == [10]
    assert files.write(descriptor, bytearray(b"ab")) == 2
    assert files.write_at(descriptor, b"XY", 3) == 2
    assert files.write_at(descriptor, b"end", 20) == 3
    os.lseek(descriptor, 1, os.SEEK_SET)
    files.write(descriptor, b"!")
    assert file.read_bytes() == b"0!2XY56789ab" + bytes(8) + b"end"

    files.truncate(descriptor, 11)
    files.sync_data(descriptor)
    files.sync(descriptor)
    files.write_out(descriptor, 0, 11)
    assert file.read_bytes() == b"0!2XY56789a"
    files.truncate(file, 3)
    files.truncate(descriptor, 5)
    assert file.read_bytes() == b"0!2\0\0"
    os.close(descriptor)

    os.close(files.open_file(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    assert file.read_bytes() == b""


def test_a_hole_reads_as_zeros_and_leaves_the_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    descriptor = files.open_file(file, os.O_RDWR | os.O_CREAT, 0o600)
    files.write(descriptor, b"x" * 10_000)
    if files.punch_hole(descriptor, 4096, 100_000):
        assert file.read_bytes() == b"x" * 4096 + bytes(10_000 - 4096)
    os.close(descriptor)


def test_names_are_given_moved_and_removed(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for path in (one, two):
        write_file_atomically(path, path.name.encode())
    files.link(one, three)
    files.rename(one, two)
    files.symlink(two, one)
    assert (two.read_bytes(), three.read_bytes(), one.read_bytes()) == (b"one",) * 3
    assert two.samefile(three)
    files.unlink(three)
    files.discard(three)
    with pytest.raises(FileNotFoundError):
        files.unlink(three)
    with pytest.raises(FileNotFoundError):
        files.rename(three, one)
    with pytest.raises(FileNotFoundError):
        files.sync_folder(tmp_path / "absent")
    with pytest.raises(FileExistsError):
        files.link(two, one)
    files.sync_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == [one, two]


def test_folders_are_made_with_those_above_them_moved_and_removed(tmp_path: Path) -> None:
    assert files.make_folder(tmp_path / "a" / "b" / "c")
    assert not files.make_folder(tmp_path / "a" / "b" / "c")
    write_file_atomically(tmp_path / "a" / "b" / "file", b"content")
    files.rename(tmp_path / "a" / "b", tmp_path / "moved")
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["c", "file"]
    files.rmdir(tmp_path / "a")
    with pytest.raises(OSError, match="not empty"):
        files.rmdir(tmp_path / "moved")
    files.remove_tree(tmp_path / "moved")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_a_file_is_no_folder(tmp_path: Path) -> None:
    write_file_atomically(tmp_path / "file", b"content")
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "file")


def test_a_lock_is_held_by_one_descriptor_and_released_with_it(tmp_path: Path) -> None:
    flags = os.O_RDWR | os.O_CREAT
    one, two = (files.open_file(tmp_path / "lock", flags, 0o600) for _ in range(2))
    files.lock(one)
    assert not files.try_lock(two)
    files.unlock(one)
    files.lock_shared(one)
    files.lock_shared(two)
    assert not files.try_lock(two)
    os.close(one)
    assert files.try_lock(two)
    os.close(two)


# Functions that change files or sync them; a Path has some of the same names. Its `rename` and
# `replace` are not looked for: batches are renamed, and text is replaced.
CHANGES = {
    *("write", "pwrite", "fsync", "fdatasync", "sync", "rename", "renames", "replace", "link"),
    *("unlink", "remove", "symlink", "truncate", "ftruncate", "mkdir", "makedirs", "rmdir"),
}
PATH_CHANGES = {
    *("write_text", "write_bytes", "unlink", "mkdir", "rmdir", "touch", "symlink_to"),
    *("hardlink_to",),
}
ALLOWED = {
    "infrastructure/files.py": "the module itself",
    "infrastructure/processors": "pipes, and scratch files of one attempt",
    "infrastructure/blobs/s3/state.py": "a buffer in an unlinked file",
    "infrastructure/postgres/embedded/binaries.py": "a copy of programs, made again if incomplete",
    "infrastructure/postgres/embedded/postmaster.py": "the previous log of the server",
    "infrastructure/postgres/embedded/data_directory.py": "a temporary name by mkdtemp",
    "interfaces/cli": "probes, exports to a file of the user, and output",
}


def test_no_module_of_the_product_changes_files_by_another_way() -> None:
    found = []
    for layer in ("domain", "application", "infrastructure", "interfaces"):
        for module in (PRODUCT / layer).rglob("*.py"):
            name = module.relative_to(PRODUCT).as_posix()
            if not any(name.startswith(allowed) for allowed in ALLOWED):
                tree = ast.parse(module.read_text())
                found += [f"{name}:{line}" for line in sorted(_changes(tree))]
    assert found == []


def _changes(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        called = owner not in ("files", "os", "shutil")
        if (
            (owner == "os" and node.attr in CHANGES)
            or (owner == "fcntl" and node.attr == "flock")
            or (owner == "shutil" and node.attr in ("rmtree", "copy", "copytree", "move"))
            or (called and node.attr in PATH_CHANGES)
        ):
            yield node.lineno
