"""`uptrail upload` against a disk that is or becomes full: one message, and the same batch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from infrastructure.settings import Settings
from tests.interfaces.cli.conftest import Command, Outcome
from tests.interfaces.conftest import serving
from tests.support import free_port

MIB = 1024 * 1024
FULL = re.compile(
    r"uptrail: (\d+) files failed: not enough disk space"
    r" \(needs (\d+\.\d [KM]iB|\d+ B), (\d+\.\d [KM]iB|\d+ B) free\)\."
    r" Free space and run the same command again to resume\."
)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of this size, in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and os.geteuid() == 0
    if not mounted or subprocess.run(command, check=False, capture_output=True).returncode:
        if os.environ.get("UPTRAIL_REQUIRE_ALL") == "1":
            pytest.fail("a small file system cannot be mounted here")
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def folder_of(tmp_path: Path, files: int, size: int) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:02}.bin").write_bytes(os.urandom(size))
    return folder


def batches(uptrail: Command, *place: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = uptrail("batch", "list", "--json", *place).json
    return found


def messages(outcome: Outcome) -> list[str]:
    """Return the lines that report failures."""
    return [line for line in outcome.err.splitlines() if "fail" in line or "room" in line]


# Small files travel together, larger ones alone: each has a path of its own through the server.
@pytest.mark.parametrize(("files", "size"), [(20, 64 * 1024), (5, 600 * 1024)])
def test_a_full_disk_seals_nothing_and_the_same_command_resumes_the_same_batch(
    command: Command, settings: Settings, tmp_path: Path, files: int, size: int
) -> None:
    folder = folder_of(tmp_path, files, size)
    settings = msgspec.structs.replace(settings, port=free_port())
    place = ("--data-dir", settings.data_dir)
    upload = ("upload", folder, "--wait", *place)

    with serving(msgspec.structs.replace(settings, min_free_bytes=2**60)):
        full = command(*upload)
        (batch,) = batches(command, *place)
        again = command(*upload, "--json")
        assert len(batches(command, *place)) == 1
    assert full.code == again.code == 1
    (message,) = messages(full)
    found = FULL.fullmatch(message)
    assert found is not None
    assert (int(found[1]), found[3]) == (files, "0 B")
    assert batch["state"] == "open"
    assert again.json["id"] == batch["id"]
    assert again.json["failed"] == files
    assert "not enough disk space" in again.json["error"]

    with serving(settings):
        resumed = command(*upload, "--json")
        assert resumed.code == 0
        assert resumed.json["id"] == batch["id"]
        assert resumed.json["batch"]["outcome"] == "succeeded"
        assert resumed.json["batch"]["counts"] == {"completed": files}


@pytest.mark.parametrize(("files", "size"), [(40, 128 * 1024), (8, MIB)])
def test_a_disk_that_fills_up_on_the_way_keeps_what_has_arrived(
    command: Command, settings: Settings, tmp_path: Path, files: int, size: int
) -> None:
    folder = folder_of(tmp_path, files, size)
    with small_disk(tmp_path / "disk", 5 * MIB // 2) as disk:
        chosen = {"blobs": str(disk), "port": free_port(), "min_free_bytes": 0}
        settings = msgspec.structs.replace(settings, **chosen)
        place = ("--data-dir", settings.data_dir)
        with serving(settings):
            full = command("upload", folder, "--wait", *place)
            (batch,) = batches(command, *place)
            subprocess.run(["mount", "-o", "remount,size=64M", str(disk)], check=True)
            resumed = command("upload", folder, "--wait", "--json", *place)

    assert full.code == 1
    (message,) = messages(full)
    assert FULL.fullmatch(message)
    assert batch["state"] == "open"
    assert resumed.code == 0
    assert resumed.json["id"] == batch["id"]
    assert resumed.json["batch"]["counts"] == {"completed": files}


def test_files_that_are_refused_for_good_do_not_keep_the_batch_waiting(
    command: Command, settings: Settings, tmp_path: Path
) -> None:
    """Over a quota, files are refused one by one: that is how their batch ends."""
    folder = folder_of(tmp_path, 4, 64 * 1024)
    limited = msgspec.structs.replace(settings, max_owner_files=2)
    with serving(limited) as server:
        done = command("upload", folder, "--wait", "--json", "--data-dir", server.data_dir)

    assert done.code == 3
    assert done.json["batch"]["counts"] == {"completed": 2, "rejected": 2}
