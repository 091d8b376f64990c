"""Processes of one installation, each as on a machine of its own: a name, roles, a data folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import free_port

UPTRAIL = (sys.executable, "-m", "interfaces.cli.main")
PATIENCE = 120.0  # seconds
HASTY = {"worker_heartbeat": "0.5", "worker_dead_after": "4", "log_format": "json"}


class Machine:
    """One server process, which may be stopped, killed and started again."""

    def __init__(self, name: str, roles: tuple[str, ...], site: Site) -> None:
        self.name = name
        self.port = free_port() if "api" in roles else None
        self._folder = site.folder / name
        self._command = [*UPTRAIL, "serve", "--data-dir", str(self._folder / "data")]
        for role in roles:
            self._command += ["--role", role]
        if self.port:
            self._command += ["--port", str(self.port)]
        self._environment = {**os.environ, **site.environment}
        self._folder.mkdir()
        self._starts = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self._folder / "data" / "admin.key").read_text().strip()

    @property
    def told(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        self._starts += 1
        with (self._folder / "out").open("a") as out:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=out, stderr=out
            )

    def wait_until_up(self) -> None:
        end = time.monotonic() + PATIENCE
        while self.told.count("Uptrail is ready") < self._starts:
            assert self.process.poll() is None, self.told
            assert time.monotonic() < end, self.told
            time.sleep(0.02)

    def send(self, kind: signal.Signals) -> None:
        self.process.send_signal(kind)

    def end(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code, once it has ended by this signal."""
        self.send(kind)
        return self.process.wait(PATIENCE)

    def restart(self) -> None:
        """As an upgrade does it: it ends in order, and is there again when this returns."""
        assert self.end() == 0, self.told
        self.start()
        self.wait_until_up()


class Site:
    """What all machines share: the database, the bytes, the settings."""

    def __init__(self, folder: Path, database_url: str, settings: Mapping[str, str]) -> None:
        self.folder = folder
        places = {"blobs": str(folder / "blobs"), "master_keys": str(folder / "master-keys")}
        shared = {"database_url": database_url, **places, **HASTY, **settings}
        self.environment = {f"UPTRAIL_{name.upper()}": value for name, value in shared.items()}
        self._machines: dict[str, Machine] = {}

    def machine(self, name: str, *roles: str) -> Machine:
        self._machines[name] = Machine(name, roles, self)
        return self._machines[name]

    def wait_until_up(self) -> None:
        for machine in self._machines.values():
            machine.wait_until_up()

    @property
    def pids(self) -> dict[str, int]:
        return {name: machine.pid for name, machine in self._machines.items()}

    def named(self, pid: int) -> Machine:
        return next(machine for machine in self._machines.values() if machine.pid == pid)

    @property
    def told(self) -> str:
        """The end of what each said, for a failed test."""
        machines = self._machines.values()
        return "\n".join(f"--- {machine.name}\n{machine.told[-3000:]}" for machine in machines)

    def kill_all(self) -> None:
        for machine in self._machines.values():
            with suppress(ProcessLookupError):
                machine.process.kill()
            machine.process.wait()


@contextmanager
def site(folder: Path, database_url: str, **settings: str) -> Iterator[Site]:
    """Machines started inside are gone afterwards; what they said is shown where a test fails."""
    opened = Site(folder, database_url, settings)
    try:
        yield opened
    except BaseException:
        print(opened.told)
        raise
    finally:
        opened.kill_all()


def run_command(*words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*UPTRAIL, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


async def ask(
    client: aiohttp.ClientSession, method: str, url: str, body: object = None
) -> dict[str, Any]:
    async with client.request(method, url, json=body) as answer:
        assert answer.status < 300, (url, answer.status, await answer.text())
        found: dict[str, Any] = await answer.json()
        return found
