"""A machine without the shared database or folder reports so, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server_process import open_machines, run_command

pytestmark = pytest.mark.timeout(400)  # whole processes start, several times


@pytest.mark.parametrize("role", ["worker", "orchestrator"])
def test_a_role_without_a_database_names_the_setting(role: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "elsewhere")

    ended = run_command("serve", "--role", role, "--data-dir", folder, environment={})

    assert ended.returncode == 2
    assert f"no database was named, and there is none in {folder}" in ended.stderr
    assert "UPTRAIL_DATABASE_URL" in ended.stderr
    assert not (tmp_path / "elsewhere" / "postgres").exists()


@pytest.mark.parametrize(
    ("setting", "folder", "refusal", "remedy", "finding", "all_well"),
    [
        (
            "UPTRAIL_BLOBS",
            "not-mounted",
            "the bytes of this database are not in",
            "mount or name the folder or bucket that the other machines use",
            "not-mounted does not hold the bytes of this database",
            [
                "those of this database",
                "api 1, orchestrator 0, worker 0",
                "uptrail serve --role orchestrator --role worker",
            ],
        ),
        (
            "UPTRAIL_MASTER_KEYS",
            "not-shared",
            "is not in {folder}",
            "set master_keys to the folder that the first process used",
            "is not in {folder}",
            ["opens owners' keys"],
        ),
    ],
    ids=["shared folder", "master keys"],
)
def test_a_worker_without_what_the_machines_share_does_not_start_and_doctor_shows_why(
    setting: str,
    folder: str,
    refusal: str,
    remedy: str,
    finding: str,
    all_well: list[str],
    database_url: str,
    tmp_path: Path,
) -> None:
    absent = tmp_path / folder
    with open_machines(database_url, tmp_path) as running:
        running.serve("api", "api")
        running.wait_until_ready()
        misconfigured = {**running.environment, setting: str(absent)}
        place = ("--data-dir", str(tmp_path / "worker"))

        worker = run_command("worker", *place, environment=misconfigured)
        doctor = run_command("doctor", *place, environment=misconfigured)
        sound = run_command("doctor", *place, environment=running.environment)

    assert worker.returncode == 2
    assert refusal.format(folder=absent) in worker.stderr
    assert remedy in worker.stderr
    assert setting == "UPTRAIL_BLOBS" or not absent.exists()  # no second set of keys is made
    assert doctor.returncode == 1
    assert finding.format(folder=absent) in doctor.stdout
    assert all(words in sound.stdout for words in all_well), sound.stdout
