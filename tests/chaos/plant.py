"""A whole Uptrail in processes of its own, any of which may be killed at any time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

UPTRAIL = Path(sys.executable).parent / "uptrail"

Role = str
SERVER, WORKER, POSTGRES = "server", "worker", "postgres"

_COMMANDS: Mapping[Role, tuple[str, ...]] = {
    SERVER: ("serve", "--role", "api", "--role", "orchestrator"),
    WORKER: ("worker",),
}


class Plant:
    """A server and a worker over one data directory with its embedded PostgreSQL."""

    def __init__(self, data_dir: Path, settings: Mapping[str, str]) -> None:
        self.data_dir = data_dir
        self.port = _free_port()
        self._settings = {f"UPTRAIL_{name.upper()}": value for name, value in settings.items()}
        self._processes: dict[Role, subprocess.Popen[bytes]] = {}

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    def start(self, role: Role) -> None:
        command = [str(UPTRAIL), *_COMMANDS[role], "--data-dir", str(self.data_dir)]
        if role == SERVER:
            command += ["--port", str(self.port)]
        log = (self.data_dir.parent / f"{role}.log").open("ab")
        with log:
            self._processes[role] = subprocess.Popen(
                command, env=os.environ | self._settings, stdout=log, stderr=log
            )

    def kill(self, role: Role) -> None:
        """kill -9, and for our own processes the start that a supervisor would do."""
        if role == POSTGRES:
            if pid := self._postmaster():
                with suppress(ProcessLookupError):  # its file outlives it
                    os.kill(pid, signal.SIGKILL)
            return
        process = self._processes[role]
        process.kill()
        process.wait()
        self.start(role)

    def revive(self) -> None:
        """Starts whatever of ours is not running."""
        for role, process in list(self._processes.items()):
            if process.poll() is not None:
                self.start(role)

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(60)

    def logs(self) -> str:
        """The end of what the processes said, for a failed test."""
        texts = [self.data_dir.parent / f"{role}.log" for role in _COMMANDS]
        return "\n".join(f"--- {text.name}\n{text.read_text()[-4000:]}" for text in texts)

    def _postmaster(self) -> int | None:
        try:
            pid = (self.data_dir / "postgres" / "cluster" / "postmaster.pid").read_text()
            return int(pid.split()[0])
        except (OSError, IndexError, ValueError):
            return None


@contextmanager
def plant(folder: Path, **settings: str) -> Iterator[Plant]:
    """A running plant; everything it started is gone afterwards."""
    (folder / "data").mkdir()
    running = Plant(folder / "data", settings)
    running.start(SERVER)
    _wait_for(running.data_dir / "admin.key")
    running.start(WORKER)
    try:
        yield running
    finally:
        running.stop()


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} did not appear")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
