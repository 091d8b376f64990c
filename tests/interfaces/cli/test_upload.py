"""`uptrail upload`: everything arrives once, and files that cannot be sent are reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault_injection import block_uploads_after
from tests.interfaces.cli.conftest import Command
from tests.interfaces.conftest import LiveServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small tree of files, one of them empty."""
    root = tmp_path / "photos"
    (root / "2026").mkdir(parents=True)
    (root / "notes.txt").write_text("hello")
    (root / "empty.txt").touch()
    (root / "2026" / "data.bin").write_bytes(os.urandom(300_000))
    return root


def wait_until(condition: Callable[[], bool], patience: float = 60.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def content_of(live_server: LiveServer, upload: str) -> bytes:
    request = urllib.request.Request(
        f"{live_server.url}/v1/uploads/{upload}/content",
        headers={"Authorization": f"Bearer {live_server.key}"},
    )
    with urllib.request.urlopen(request) as response:
        return bytes(response.read())


def test_a_folder_arrives_byte_for_byte_and_is_processed(
    uptrail: Command, live_server: LiveServer, folder: Path
) -> None:
    done = uptrail("upload", folder, "--wait", "--label", "trip", "--json")

    assert done.code == 0
    assert done.json["batch"]["outcome"] == "succeeded"
    uploads = uptrail("batch", "show", done.json["id"], "--json").json["uploads"]
    assert {row["path"] for row in uploads} == {
        "photos/notes.txt",
        "photos/empty.txt",
        "photos/2026/data.bin",
    }
    for row in uploads:
        assert content_of(live_server, row["id"]) == (folder.parent / row["path"]).read_bytes()


def test_the_same_command_again_is_a_new_batch_once_the_first_is_done(
    uptrail: Command, folder: Path
) -> None:
    first = uptrail("upload", folder, "--wait", "--json").json
    second = uptrail("upload", folder, "--wait", "--json").json

    assert first["id"] != second["id"]


def test_a_killed_upload_goes_on_where_it_was_and_sends_nothing_twice(
    uptrail: Command, live_server: LiveServer, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03}.bin").write_bytes(os.urandom(20_000))
    command = ["upload", str(folder), "--jobs", "1", "--data-dir", str(live_server.data_dir)]
    assert live_server.settings.database_url is not None
    with block_uploads_after(live_server.settings.database_url, files=100) as is_blocked:
        process = subprocess.Popen(
            [sys.executable, "-m", "interfaces.cli.main", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(is_blocked)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    (killed,) = uptrail("batch", "list", "--json").json

    done = uptrail("upload", folder, "--jobs", "1", "--wait", "--json")

    assert done.code == 0
    assert f"going on with batch {killed['id']}" in done.err
    assert done.json["id"] == killed["id"]
    assert done.json["batch"]["uploads"] == 300
    assert done.json["batch"]["bytes_received"] == 300 * 20_000
    events = uptrail("history", "show", killed["id"], "--limit", 100_000, "--json").json
    received = [event["stream"] for event in events if event["type"] == "upload.file_received"]
    assert len(received) == len(set(received)) == 300


def _hears_ctrl_c() -> None:
    """Even where these tests run in the background, with the signal ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_a_command_with_one_word(uptrail: Command, live_server: LiveServer) -> None:
    command = ["batch", "watch", uptrail("batch", "start").out.strip()]
    watching = subprocess.Popen(
        [sys.executable, "-m", "interfaces.cli.main", *command, "--data-dir", live_server.data_dir],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hears_ctrl_c,
    )
    assert watching.stderr is not None
    watching.stderr.readline()  # it follows the batch

    watching.send_signal(signal.SIGINT)

    assert watching.wait(60) == 130
    assert watching.stderr.read().splitlines()[-1] == "uptrail: stopped"
    watching.stderr.close()


def test_files_that_cannot_be_sent_are_reported_and_the_others_arrive(
    uptrail: Command, folder: Path
) -> None:
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (folder / "bad\nname").touch()

    done = uptrail("upload", folder, "--wait", "--json")

    assert done.code == 3
    assert done.json["batch"]["counts"] == {"completed": 3}
    reasons = {Path(one["path"]).name: one["reason"] for one in done.json["failures"]}
    assert reasons["loop"] == "a symbolic link back to a folder above it"
    assert reasons["pipe"] == "not a regular file"
    assert "control characters" in reasons["bad\nname"]


def test_a_file_that_fails_in_processing_is_reported_with_its_reason(
    uptrail: Command, folder: Path
) -> None:
    (folder / "broken.png").touch()

    done = uptrail("upload", folder, "--wait", "--json")

    assert done.code == 3
    assert done.json["batch"]["outcome"] == "completed_with_failures"
    (failure,) = done.json["failures"]
    assert failure["path"] == "photos/broken.png"
    assert failure["reason"]


def test_a_path_that_is_not_there_is_refused_before_anything_starts(
    uptrail: Command, tmp_path: Path
) -> None:
    refused = uptrail("upload", tmp_path / "nowhere")

    assert refused.code == 2
    assert "does not exist" in refused.err
    assert uptrail("batch", "list", "--json").json == []


def test_two_folders_of_one_name_are_refused(uptrail: Command, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "same").mkdir(parents=True)

    refused = uptrail("upload", tmp_path / "a" / "same", tmp_path / "b" / "same")

    assert refused.code == 2
    assert "same name" in refused.err


def test_a_file_called_like_a_subcommand_is_named_by_its_path(
    uptrail: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "show").write_text("not a command")
    monkeypatch.chdir(tmp_path)

    assert uptrail("upload", "./show", "--wait").code == 0
