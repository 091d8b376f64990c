"""A machine that was not told where the others keep things says so, and does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server_process import open_machines, run_command

pytestmark = pytest.mark.timeout(400)  # whole processes start, several times


@pytest.mark.parametrize("role", ["worker", "orchestrator"])
def test_a_role_that_finds_no_database_says_which_to_name(role: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "elsewhere")

    ended = run_command("serve", "--role", role, "--data-dir", folder, environment={})

    assert ended.returncode == 2
    assert f"no database was named, and there is none in {folder}" in ended.stderr
    assert "UPTRAIL_DATABASE_URL" in ended.stderr
    assert not (tmp_path / "elsewhere" / "postgres").exists()


def test_a_worker_without_the_shared_folder_does_not_start_and_doctor_tells_why(
    database_url: str, tmp_path: Path
) -> None:
    with open_machines(database_url, tmp_path) as running:
        running.serve("api", "api")
        running.wait_until_ready()
        lost = {**running.environment, "UPTRAIL_BLOBS": str(tmp_path / "not-mounted")}
        place = ("--data-dir", str(tmp_path / "worker"))

        worker = run_command("worker", *place, environment=lost)
        doctor = run_command("doctor", *place, environment=lost)
        sound = run_command("doctor", *place, environment=running.environment)

    assert worker.returncode == 2
    assert "the bytes of this database are not in" in worker.stderr
    assert "mount or name the folder or bucket that the other machines use" in worker.stderr
    assert doctor.returncode == 1
    assert "not-mounted does not hold the bytes of this database" in doctor.stdout
    assert "those of this database" in sound.stdout
    assert "api 1, orchestrator 0, worker 0" in sound.stdout
    assert "uptrail serve --role orchestrator --role worker" in sound.stdout


def test_a_machine_without_the_master_key_does_not_start_and_doctor_reports_why(
    database_url: str, tmp_path: Path
) -> None:
    with open_machines(database_url, tmp_path) as running:
        running.serve("api", "api")
        running.wait_until_ready()
        other = {**running.environment, "UPTRAIL_MASTER_KEYS": str(tmp_path / "not-shared")}
        place = ("--data-dir", str(tmp_path / "worker"))

        worker = run_command("worker", *place, environment=other)
        doctor = run_command("doctor", *place, environment=other)
        sound = run_command("doctor", *place, environment=running.environment)

    assert worker.returncode == 2
    assert f"is not in {tmp_path / 'not-shared'}" in worker.stderr
    assert "set master_keys to the folder that the first process used" in worker.stderr
    assert not (tmp_path / "not-shared").exists()
    assert doctor.returncode == 1
    assert f"is not in {tmp_path / 'not-shared'}" in doctor.stdout
    assert "opens owners' keys" in sound.stdout
