"""The parts of the upload client: listing files, resuming and sending."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from interfaces.cli.console import CommandError
from interfaces.cli.files import ScannedFile, SkippedFile, resolve_roots, scan
from interfaces.cli.transfer import FileModified, SourceFile
from interfaces.cli.upload import open_resume_file


def test_a_walk_names_files_by_their_folder_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a"):
        path = tmp_path / "top" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    found = list(scan(resolve_roots([tmp_path / "top"])))

    assert [entry.name for entry in found if isinstance(entry, ScannedFile)] == [
        "top/a",
        "top/b/1",
        "top/b/2",
    ]


def test_a_walk_enters_links_to_folders_but_never_turns_in_circles(tmp_path: Path) -> None:
    (tmp_path / "top" / "real").mkdir(parents=True)
    (tmp_path / "top" / "real" / "file").write_text("x")
    (tmp_path / "top" / "link").symlink_to("real")
    (tmp_path / "top" / "real" / "up").symlink_to("..")
    (tmp_path / "top" / "dangling").symlink_to("nowhere")

    entries = list(scan(resolve_roots([tmp_path / "top"])))

    names = [entry.name for entry in entries if isinstance(entry, ScannedFile)]
    assert names == ["top/link/file", "top/real/file"]
    reasons = {entry.reason for entry in entries if isinstance(entry, SkippedFile)}
    assert reasons == {
        "a symbolic link back to a folder above it",
        "no such file or directory",
    }


def test_a_name_that_is_not_unicode_is_left_out_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    os.close(os.open(os.fsencode(tmp_path / "top") + b"/\xff.txt", os.O_CREAT))

    (entry,) = scan(resolve_roots([tmp_path / "top"]))

    assert isinstance(entry, SkippedFile)
    assert "must be valid Unicode" in entry.reason


@pytest.mark.parametrize("change", ["longer", "shorter", "touched"])
async def test_a_file_that_changes_while_it_is_sent_never_arrives_whole(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    before = path.stat()
    moved: list[int] = []

    with pytest.raises(FileModified):
        with SourceFile(path, before.st_size, before.st_mtime_ns, moved.append) as source:
            async for _ in source.chunks():
                if change == "longer":
                    path.write_bytes(bytes(3_000_001))
                elif change == "shorter":
                    path.write_bytes(bytes(10))
                else:
                    os.utime(path, ns=(0, 1))
        raise AssertionError("it was taken for the same file")
    assert sum(moved) < before.st_size


def test_an_upload_is_remembered_until_it_is_forgotten(tmp_path: Path) -> None:
    identity = (tmp_path, "http://server", [Path("/a")], "label", "default")

    with open_resume_file(*identity) as (_, first, again):
        assert not again
    with open_resume_file(*identity) as (memory, second, again):
        assert again
        assert second.key == first.key
        memory.delete()
    with open_resume_file(*identity) as (_, third, again):
        assert not again
        assert third.key != first.key


def test_the_same_upload_does_not_run_twice_at_once(tmp_path: Path) -> None:
    identity = (tmp_path, "http://server", [Path("/a")], "label", "default")

    with (
        open_resume_file(*identity),
        pytest.raises(CommandError, match="runs already"),
        open_resume_file(*identity),
    ):
        pass
