"""Pipelines are validated before a server starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from application.pipeline import Pipeline, Step
from infrastructure.settings import Settings
from infrastructure.settings_loader import BadSetting
from interfaces.bootstrap.container import ALL_ROLES, Role, validate_settings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(
    ("settings", "roles", "fine"),
    [
        ({"port": 8080}, ALL_ROLES, True),
        ({"port": 0}, ALL_ROLES, False),
        ({"host": "0.0.0.0"}, ALL_ROLES, False),
        ({"host": "0.0.0.0", "public_url": "https://up.example"}, ALL_ROLES, True),
        ({}, (Role.WORKER,), False),
        ({"public_url": "https://up.example"}, (Role.WORKER,), True),
        ({"port": 0}, (Role.API,), True),
    ],
)
def test_a_worker_that_asks_services_must_know_where_they_find_the_api(
    settings: Any, roles: tuple[Role, ...], fine: bool
) -> None:
    options = {"url": "https://a.example", "secret": SECRET}
    pipeline = Pipeline(steps=(Step(processor="http", options=options),))
    given = Settings(pipelines={"mine": pipeline}, **settings)

    if fine:
        validate_settings(given, roles)
    else:
        with pytest.raises(BadSetting, match="public_url must be set"):
            validate_settings(given, roles)


def test_a_server_with_a_pipeline_that_cannot_work_does_not_start(tmp_path: Path) -> None:
    config = tmp_path / "uptrail.toml"
    config.write_text('[pipelines.mine]\nsteps = [{ processor = "resize" }]')
    command = [sys.executable, "-m", "interfaces.cli.main", "serve", "--data-dir", str(tmp_path)]

    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert "pipelines.mine, step 1 (resize): there is no processor 'resize'" in ended.stderr
    assert not (tmp_path / "postgres").exists()
