"""Files and commands of `docs/deploy` are accepted by the program as it is now."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from infrastructure.settings import Settings
from infrastructure.settings_loader import fields, load
from interfaces.bootstrap.processes import KILL_AFTER_GRACE
from interfaces.cli.main import make_app

DEPLOY = Path(__file__).parents[2] / "docs/deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
EXAMPLES = sorted(DEPLOY.glob("*.example"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OURS = {name: one for name, one in COMPOSE["services"].items() if one["image"] == "uptrail"}


def accepted(command: list[str]) -> None:
    """Raises where the command line does not know this command, or one of its options."""
    make_app().parse_args(command, exit_on_error=False, print_error=False)


def settings_of(environment: Mapping[str, str]) -> Settings:
    return load(environ=environment).settings


def assignments(text: str) -> dict[str, str]:
    """The lines `NAME=value` of an environment file."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def entries(unit: Path, key: str) -> Iterator[str]:
    """The values of a key in a unit, in order."""
    for line in unit.read_text().splitlines():
        if line.startswith(f"{key}="):
            yield line.partition("=")[2]


def entry(unit: Path, key: str) -> str:
    (value,) = entries(unit, key)
    return value


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.mark.parametrize("name", OURS)
def test_services_of_the_compose_file_run_commands_and_settings_that_exist(name: str) -> None:
    service = OURS[name]
    shared = assignments((DEPLOY / "secrets.env.example").read_text())

    accepted(service["command"])
    settings = settings_of({**shared, **service["environment"]})

    assert settings.database_url is not None
    assert settings.blob_bucket is not None
    assert settings.trust_forwarded == (name == "api")
    assert seconds(service["stop_grace_period"]) >= settings.shutdown_grace + KILL_AFTER_GRACE


def test_the_compose_file_starts_every_role_more_than_once_and_what_they_stand_on_first() -> None:
    assert {name: one["deploy"]["replicas"] for name, one in OURS.items()} == {
        "api": 2,
        "orchestrator": 2,
        "worker": 3,
    }
    for service in OURS.values():
        assert set(service["depends_on"]) == {"postgres", "bucket"}
        assert service["restart"] == "unless-stopped"
    named = {
        volume.partition(":")[0]
        for one in COMPOSE["services"].values()
        for volume in one.get("volumes", [])
        if not volume.startswith(".")
    }
    assert named == set(COMPOSE["volumes"])


def test_images_are_named_without_a_registry() -> None:
    images = [service["image"] for service in COMPOSE["services"].values()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)

    for image in images:
        assert "." not in image.partition("/")[0] or "/" not in image, image


def test_the_image_copies_what_exists_and_runs_what_is_accepted() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in copied.split():
            assert (DEPLOY.parents[1] / source).exists(), source

    (environment,) = re.findall(r"^ENV (.+)$", text, re.MULTILINE)
    (command,) = re.findall(r"^CMD (\[.+\])$", text, re.MULTILINE)

    settings_of(dict(pair.split("=") for pair in environment.split()))
    accepted(yaml.safe_load(command))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_of_environments_hold_settings_that_exist_and_no_secret(example: Path) -> None:
    environment = assignments(example.read_text())

    assert settings_of(environment).database_url is not None
    assert "change-me" in environment["UPTRAIL_DATABASE_URL"]
    assert "change-me" in environment["AWS_SECRET_ACCESS_KEY"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_run_commands_and_settings_that_exist_and_wait_for_the_end(unit: Path) -> None:
    program, *command = shlex.split(entry(unit, "ExecStart"))
    accepted(command)
    given = dict(pair.split("=") for line in entries(unit, "Environment") for pair in line.split())
    settings = settings_of(given)

    assert program == "/opt/uptrail/.venv/bin/uptrail"
    assert entry(unit, "Type") == "notify"
    assert entry(unit, "KillMode") == "mixed"
    assert seconds(entry(unit, "TimeoutStopSec")) >= settings.shutdown_grace + KILL_AFTER_GRACE
    assert given["UPTRAIL_DATA_DIR"] == f"%S/{entry(unit, 'StateDirectory')}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        program = entry(unit, "ExecStart").split()[0]
        name = unit.name.replace("@", "@1")
        (tmp_path / name).write_text(unit.read_text().replace(program, sys.executable))

    verified = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )

    ours = [line for line in verified.stderr.splitlines() if "uptrail" in line]
    assert ours == []


def test_proxies_wait_longer_than_the_server_and_hold_nothing_back() -> None:
    nginx = dict(re.findall(r"^\s*(\w+)\s+([^;{]+);", (DEPLOY / "nginx.conf").read_text(), re.M))
    headers = re.findall(r"proxy_set_header (\S+) (.+);", (DEPLOY / "nginx.conf").read_text())
    caddy = (DEPLOY / "Caddyfile").read_text()

    assert nginx["client_max_body_size"] == "0"
    assert nginx["proxy_request_buffering"] == nginx["proxy_buffering"] == "off"
    assert seconds(nginx["client_body_timeout"]) > Settings().transfer_idle_timeout
    assert {"Upgrade", "Connection", "Forwarded", "X-Forwarded-Proto"} <= {h for h, _ in headers}
    assert dict(headers)["Forwarded"] == '""'
    assert "flush_interval -1" in caddy
    assert "header_up -Forwarded" in caddy


def test_the_page_about_it_names_settings_files_and_commands_that_exist() -> None:
    page = (DEPLOY / "README.md").read_text()

    for variable in re.findall(r"UPTRAIL_([A-Z_]+)", page):
        assert variable.lower() in fields(), variable
    for target in re.findall(r"\]\(([\w.@-]+)\)", page):
        assert (DEPLOY / target).exists(), target
    commands = set(re.findall(r"`uptrail ([a-z]+)", page))
    assert commands <= {name for name in make_app() if not name.startswith("-")}
    assert {path.name for path in DEPLOY.iterdir()} - {"README.md"} <= set(
        re.findall(r"[\w.@-]+", page)
    )
