"""A remote step across three processes: the service, a worker and an API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import free_port

EXAMPLE = Path(__file__).parents[3] / "docs/examples/http_service.py"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 120.0  # seconds
FILES = {"short.txt": "two words", "long.txt": "word " * 1000}

CONFIG = """
host = "127.0.0.1"
port = {api}
database_url = "{database}"
blobs = "{folder}/blobs"
public_url = "http://127.0.0.1:{api}"
allow_private_addresses = true

[pipelines.default]
steps = [{{ processor = "http", options = {{ url = "{service}", secret = "{secret}" }} }}]
"""


def test_the_example_service_serves_a_worker_and_an_api_of_other_processes(
    database_url: str, tmp_path: Path
) -> None:
    api, service = free_port(), free_port()
    config = tmp_path / "uptrail.toml"
    config.write_text(
        CONFIG.format(
            api=api,
            service=f"http://127.0.0.1:{service}/",
            database=database_url,
            folder=tmp_path,
            secret=SECRET,
        )
    )
    files = tmp_path / "files"
    files.mkdir()
    for name, text in FILES.items():
        (files / name).write_text(text)
    uptrail = [sys.executable, "-m", "interfaces.cli.main"]
    place = ["--config", str(config), "--data-dir"]
    roles = ["--role", "api", "--role", "orchestrator"]
    with (
        process([sys.executable, str(EXAMPLE), str(service)], tmp_path / "service.out"),
        process([*uptrail, "serve", *roles, *place, str(tmp_path / "api")], tmp_path / "api.out"),
    ):
        wait_for(lambda: _listens(service) and _listens(api), tmp_path)
        with process([*uptrail, "worker", *place, str(tmp_path / "w")], tmp_path / "worker.out"):
            key = (tmp_path / "api" / "admin.key").read_text().strip()
            environ = {**os.environ, "UPTRAIL_URL": f"http://127.0.0.1:{api}", "UPTRAIL_KEY": key}
            sent = subprocess.run(
                [*uptrail, "upload", str(files), "--wait", "--data-dir", str(tmp_path / "client")],
                env=environ,
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            assert sent.returncode == 0, sent.stdout + sent.stderr + result_in_log(tmp_path)
            assert _words(api, key) == {2, 1000}


def _words(api: int, key: str) -> set[int]:
    """Return the result of the service from the log."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{api}/v1/history?limit=1000", headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        history: dict[str, Any] = json.loads(response.read())
    recorded = [item["data"] for item in history["items"]]
    return {data["results"]["http"]["words"] for data in recorded if "results" in data}


@contextmanager
def process(command: list[str], out: Path) -> Iterator[None]:
    shared = {"UPTRAIL_MASTER_KEYS": str(out.parent / "master-keys")}
    environ = {**os.environ, **shared, "SECRET": SECRET}
    with (
        out.open("w") as file,
        subprocess.Popen(command, env=environ, stdout=file, stderr=file) as running,
    ):
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                running.kill()


def wait_for(condition: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, result_in_log(folder)
        time.sleep(0.05)


def result_in_log(folder: Path) -> str:
    return "\n".join(file.read_text() for file in folder.glob("*.out"))


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
