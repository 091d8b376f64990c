"""A whole Uptrail in processes of its own, any of which may be killed or stopped at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from infrastructure.postgres.embedded import EmbeddedPostgres
from tests.chaos import linger
from tests.support import free_port

ROOT = Path(__file__).parents[2]
UPTRAIL = Path(sys.executable).parent / "uptrail"
STARTING = 120.0  # seconds until a process that does not come up is a failed test
UNREACHABLE = 5  # how a process ends that finds no database when it starts
DROPPED = 0.5  # the share of connections that go when the network has a bad moment

API, ORCHESTRATOR, WORKER = "api", "orchestrator", "worker"
NAMES = ("api-1", "api-2", "orchestrator-1", "orchestrator-2", "worker-1", "worker-2")

# Half of our connections, each by the toss of a coin; whoever asks is spared.
_DROP = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name LIKE 'uptrail-%%' AND pid <> pg_backend_pid() AND random() < %s"""


class Plant:
    """Two of each role over one data directory with its embedded PostgreSQL."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.data_dir = folder / "data"
        self.data_dir.mkdir()
        self.ports = {name: free_port() for name in NAMES if name.startswith(API)}
        self._postgres = EmbeddedPostgres(self.data_dir)
        self._settings = {f"UPTRAIL_{name.upper()}": value for name, value in settings.items()}
        packages = linger.installed(folder / "packages")
        self._settings["PYTHONPATH"] = os.pathsep.join((str(packages), str(ROOT)))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._turn = threading.Lock()  # who starts or kills processes

    @property
    def key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def url(self) -> str:
        """Of the database, which is started if it is not running."""
        return self._postgres.start()

    def start(self, name: str) -> None:
        role = name.partition("-")[0]
        command = [str(UPTRAIL), "serve", "--role", role, "--data-dir", str(self.data_dir)]
        command += ["--port", str(self.ports.get(name, 0))]
        with (self.data_dir.parent / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, env=os.environ | self._settings, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """kill -9, and the start that a supervisor would do."""
        with self._turn:
            self._processes[name].kill()
            self._processes[name].wait()
            self.start(name)

    def stop_for(self, name: str, seconds: float) -> None:
        """The process stands still, as in a machine that was suspended, and then goes on."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    def kill_postgres(self) -> None:
        with suppress(OSError, IndexError, ValueError):  # it may be between two starts
            file = self.data_dir / "postgres" / "cluster" / "postmaster.pid"
            os.kill(int(file.read_text().split()[0]), signal.SIGKILL)

    def drop_connections(self) -> None:
        with suppress(psycopg.Error), psycopg.connect(self.url, autocommit=True) as server:
            server.execute(_DROP, (DROPPED,))

    def revive(self) -> None:
        """What a supervisor does; nothing ends by itself but what met no database at its start."""
        with self._turn:
            for name, process in list(self._processes.items()):
                if process.poll() is not None:
                    assert process.returncode == UNREACHABLE, (name, process.returncode)
                    self.start(name)

    def stop(self) -> None:
        """Everybody ends in good order, and nobody takes for ever."""
        for process in self._processes.values():
            process.terminate()
        late = [name for name, process in self._processes.items() if not _ended(process)]
        self._postgres.stop()
        assert not late, f"{late} did not end"

    def discard(self) -> None:
        """Root's database does not lie in the folder of the test."""
        self._postgres.discard()

    def logs(self) -> str:
        """The end of what the processes said, for a failed test."""
        texts = [self.data_dir.parent / f"{name}.log" for name in NAMES]
        return "\n".join(f"--- {text.name}\n{text.read_text()[-4000:]}" for text in texts)


@contextmanager
def plant(folder: Path, **settings: str) -> Iterator[Plant]:
    """A running plant; no process that it started is left afterwards."""
    running = Plant(folder, settings)
    running.start(NAMES[0])
    try:
        _wait_for(running.data_dir / "admin.key")
        for name in NAMES[1:]:
            running.start(name)
        yield running
    except BaseException:  # its database stays, to be looked at
        running.stop()
        raise
    running.stop()
    running.discard()


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + STARTING
    while not (file.exists() and file.read_text()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} did not appear")
        time.sleep(0.05)
