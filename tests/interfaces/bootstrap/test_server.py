"""A server process: start, address, recovery of its parts, ordered shutdown."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import psycopg
import pytest

from infrastructure.postgres.embedded.data_directory import ServerDir
from infrastructure.postgres.embedded.postmaster import Postmaster
from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.settings import Settings
from infrastructure.settings_loader import fields
from interfaces.bootstrap.container import ALL_ROLES
from interfaces.bootstrap.listen import Ready, bind_sockets
from interfaces.bootstrap.server import serve_single_process
from interfaces.bootstrap.tasks import MAX_RESTARTS, TaskFailed, supervise
from interfaces.cli.console import find_running_server
from tests.server_process import open_server, wait_for
from tests.support import eventually

PATIENCE = 120.0


def get(data_dir: Path, path: str) -> int:
    running = find_running_server(data_dir)
    if running is None:
        return 0
    key = (data_dir / "admin.key").read_text().strip()
    request = urllib.request.Request(running.url + path, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The line on which a service manager waits for news: sd_notify(3)."""
    with TemporaryDirectory() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(f"{short}/notify")
        line.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{short}/notify")
        yield line


def test_a_server_prints_its_url_and_login_link_and_ends_in_order(
    settings: Settings, manager: socket.socket
) -> None:
    assert settings.database_url is not None
    with open_server("--database-url", settings.database_url, data_dir=settings.data_dir) as server:
        assert manager.recv(100) == b"READY=1"
        announced = (settings.data_dir.parent / "server.out").read_text
        wait_for(lambda: "sign in" in announced())
        running = find_running_server(settings.data_dir)
        assert running is not None
        assert running.url.startswith("http://127.0.0.1:")
        assert re.search(rf"{re.escape(running.url)}/login\?code=\S+", announced())
        assert get(settings.data_dir, "/readyz") == 200
        mode = stat.S_IMODE(settings.admin_key_file.stat().st_mode)
        assert mode == 0o600

        server.send(signal.SIGTERM)

        assert manager.recv(100) == b"STOPPING=1"
        assert server.wait() == 0
        assert find_running_server(settings.data_dir) is None
        assert not (settings.data_dir / "server.json").exists()
        with psycopg.connect(settings.database_url) as connection:
            others = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'uptrail-%'"
            assert connection.execute(others).fetchone() == (0,)


def test_an_address_in_use_is_reported_in_one_sentence(settings: Settings) -> None:
    assert settings.database_url is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        options = ("--database-url", settings.database_url, "--port", port)
        command = [sys.executable, "-m", "interfaces.cli.main", "serve", *options]
        ended = subprocess.run(
            [*command, "--data-dir", settings.data_dir], capture_output=True, text=True, check=False
        )

    assert ended.returncode == 1
    assert "cannot listen on 127.0.0.1" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_an_address_taken_during_the_start_is_never_announced(
    settings: Settings,
) -> None:
    announced: list[Ready] = []

    stopping = asyncio.Event()
    stopping.set()
    with bind_sockets(settings) as door, socket.socket() as stranger:
        # Two may bind an address with this option, as most servers do; one may listen.
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(door.sockets[0].getsockname())
        stranger.listen()
        with pytest.raises(OSError, match="already in use"):
            await serve_single_process(settings, ALL_ROLES, door, announced.append, stopping)
    assert announced == []
    assert find_running_server(settings.data_dir) is None


def test_an_embedded_postgres_that_is_killed_comes_back_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    with open_server(data_dir=data_dir) as server:
        before = started_batch(data_dir)

        postmaster = postmaster_of(data_dir)
        assert postmaster is not None
        os.kill(postmaster.pid, signal.SIGKILL)

        wait_for(lambda: get(data_dir, f"/v1/batches/{before}") == 200)
        after = wait_for(lambda: started_batch(data_dir))
        wait_for(lambda: get(data_dir, f"/v1/batches/{after}") == 200)
        assert server.poll() is None
        server.send(signal.SIGTERM)
        assert server.wait() == 0
    assert postmaster_of(data_dir) is None
    assert "never retrieved" not in (data_dir.parent / "server.out").read_text()
    EmbeddedPostgres(data_dir).discard()


def test_authentication_cannot_be_switched_off() -> None:
    assert not [name for name in fields() if "auth" in name or "anonymous" in name]


class FailingTask:
    """Task that fails at once, and counts its runs."""

    runs = 0

    async def run(self) -> None:
        self.runs += 1
        raise ZeroDivisionError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FailingTask:
    """Restarted without a noticeable pause."""
    monkeypatch.setattr("interfaces.bootstrap.tasks.MIN_RESTART_PAUSE", 0.001)
    monkeypatch.setattr("interfaces.bootstrap.tasks.MAX_RESTART_PAUSE", 0.001)
    return FailingTask()


async def test_a_failed_task_is_restarted_and_one_that_keeps_failing_ends_the_server(
    failing: FailingTask,
) -> None:
    with pytest.raises(TaskFailed, match="mill keeps failing"):
        await supervise("mill", failing.run)
    assert failing.runs == MAX_RESTARTS


async def test_a_part_that_is_not_essential_is_started_again_for_ever(
    failing: FailingTask,
) -> None:
    supervising = asyncio.create_task(supervise("worker", failing.run, essential=False))
    await eventually(lambda: failing.runs > MAX_RESTARTS)
    supervising.cancel()
    await asyncio.wait((supervising,))


def started_batch(data_dir: Path) -> str | None:
    """The id of a batch that was just started; None while that cannot be done."""
    running = find_running_server(data_dir)
    assert running is not None
    key = (data_dir / "admin.key").read_text().strip()
    request = urllib.request.Request(
        f"{running.url}/v1/batches",
        data=b"{}",
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return str(msgspec.json.decode(response.read())["id"])
    except urllib.error.HTTPError as error:
        error.close()
        return None


def postmaster_of(data_dir: Path) -> Postmaster | None:
    return Postmaster.read(ServerDir((data_dir / "postgres").resolve()))
