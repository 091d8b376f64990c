"""Durable files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from infrastructure import platform
from infrastructure.platform import write_file_atomically


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

    monkeypatch.setattr(platform.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_file_atomically(file, b"new")

    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_content_and_name_are_synced_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        sync(descriptor)

    monkeypatch.setattr(platform.os, "fsync", note)
    write_file_atomically(tmp_path / "key", b"content")

    assert synced == [False, True]
