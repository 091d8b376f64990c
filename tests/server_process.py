"""Server processes of their own, which a test may stop, kill and start again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
import psycopg

from tests.api_client import Client
from tests.support import free_port

PROJECT = Path(__file__).parents[1]
UPTRAIL = (sys.executable, "-m", "interfaces.cli.main")
TIMEOUT = 120.0  # seconds for a process to come up or to end
READY = "Uptrail is ready"
HASTY = {"worker_heartbeat": 0.5, "worker_dead_after": 4, "log_format": "json"}
PROCESSORS = (
    "hold = tests.fake_processors:hold",
    "linger = tests.fake_processors:linger",
    "stumble = tests.fake_processors:stumble",
    "pill = tests.crash.pills:pill",
)

Found = TypeVar("Found")


class ServerProcess:
    """Process of a serving command, with its data folder, its port and a file of its output."""

    def __init__(
        self,
        *command: str,
        data_dir: Path,
        output: Path,
        environment: Mapping[str, str],
        port: int | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self._command = [*UPTRAIL, *command, "--data-dir", str(data_dir)]
        if port is not None:
            self._command += ["--port", str(port)]
        self._output = output
        self._environment = environment
        self._starts = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The first key, which a server makes for itself."""
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.poll()

    def start(self) -> None:
        self._starts += 1
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=output, stderr=output
            )

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.poll() is not None or self.output.count(READY) == self._starts)
        assert self.poll() is None, self.output

    def send(self, kind: signal.Signals) -> None:
        self._process.send_signal(kind)

    def wait(self) -> int:
        """The exit code, once the process has ended."""
        return self._process.wait(TIMEOUT)

    def end(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Send this signal, and return the exit code."""
        self.send(kind)
        return self.wait()

    def restart(self) -> None:
        """Stop in good order, as for an upgrade, and start again."""
        assert self.end() == 0, self.output
        self.start()
        self.wait_until_ready()

    def discard(self) -> None:
        """Kill the process if it still runs."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


class Cluster:
    """Server processes that share a database and settings.

    `start` and `start_worker` run processes of one machine: they share a data folder, and the
    server always has the same port. `serve` runs a process on a machine of its own.
    """

    def __init__(self, database_url: str | None, folder: Path, settings: Mapping[str, Any]) -> None:
        self.database_url = database_url or ""
        self.folder = folder
        self.data_dir = folder / "data"
        self.port = free_port()
        self.processes: dict[str, ServerProcess] = {}
        self._starts = 0
        packages = install_processors(folder / "packages")
        self.environment = {
            **_inherited(),
            **{f"UPTRAIL_{name.upper()}": _text(value) for name, value in settings.items()},
            **({"UPTRAIL_DATABASE_URL": database_url} if database_url else {}),
            "PYTHONPATH": os.pathsep.join((str(packages), str(PROJECT))),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The first key, which the server made for itself."""
        return (self.data_dir / "admin.key").read_text().strip()

    @property
    def admin(self) -> Client:
        return Client(self.port, self.key)

    def key_for(self, owner: str, scope: str = "operator", **more: Any) -> Client:
        """A client of another owner, with a key of its own."""
        made = self.admin.post("/v1/keys", {"owner": owner, "scope": scope, **more})
        return Client(self.port, made["text"])

    # Processes.

    def start(self, *roles: str) -> ServerProcess:
        """Start the server, and return once it is ready."""
        server = self._run("server", *_serve(roles), data_dir=self.data_dir, port=self.port)
        server.wait_until_ready()
        return server

    def start_worker(self) -> ServerProcess:
        """Start a worker in a process of its own, and return once the queue knows it."""
        before = self.workers()
        worker = self._run("worker", "worker", data_dir=self.data_dir)
        wait_for(lambda: self.workers() - before)
        return worker

    def serve(self, name: str, *roles: str, data_dir: Path | None = None) -> ServerProcess:
        """Start a server on a machine of its own; it is not waited for."""
        port = free_port() if "api" in roles else None
        folder = data_dir or self.folder / name
        return self._run(name, *_serve(roles), data_dir=folder, port=port)

    def wait_until_ready(self) -> None:
        for process in self.processes.values():
            process.wait_until_ready()

    def kill(self, process: ServerProcess) -> None:
        """Send SIGKILL: the process cleans nothing up."""
        process.end(signal.SIGKILL)

    def stop(self, kind: str = "") -> None:
        """Stop every process whose name begins so in good order."""
        chosen = [self.processes[name] for name in self.processes if name.startswith(kind)]
        running = [process for process in chosen if process.poll() is None]
        for process in running:
            process.send(signal.SIGTERM)
        assert [process.wait() for process in running] == [0] * len(running), self.output()

    def with_pid(self, pid: int) -> ServerProcess:
        return next(process for process in self.processes.values() if process.pid == pid)

    def running(self) -> list[psutil.Process]:
        """The processes that have not ended, seen from outside."""
        found = self.processes.values()
        return [psutil.Process(process.pid) for process in found if process.poll() is None]

    def output(self) -> str:
        """Return the output and log of the processes so far."""
        return "\n".join(process.output for process in self.processes.values())

    def discard(self) -> None:
        for process in self.processes.values():
            process.discard()

    def _run(
        self, name: str, *command: str, data_dir: Path, port: int | None = None
    ) -> ServerProcess:
        self._starts += 1
        process = ServerProcess(
            *command,
            data_dir=data_dir,
            output=self.folder / f"{self._starts}-{name}.out",
            environment=self.environment,
            port=port,
        )
        self.processes[f"{name}-{self._starts}" if name in self.processes else name] = process
        return process

    # The database.

    def fetch(self, query: Any, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(query, parameters).fetchall()

    def execute(self, statement: Any, *parameters: object) -> None:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(statement, parameters)

    def head(self) -> int:
        """Return the number of recorded events without the counts of the orchestrator."""
        counted = "SELECT count(*) FROM stored_events WHERE topic <> 'batch.progressed'"
        return int(self.fetch(counted)[0][0])

    def workers(self) -> set[int]:
        """The workers that the queue knows."""
        return {row[0] for row in self.fetch("SELECT id FROM procrastinate_workers")}


@contextmanager
def open_server(*options: str, data_dir: Path) -> Iterator[ServerProcess]:
    """One server process on a free port, once it is ready."""
    server = ServerProcess(
        *("serve", "--port", "0", *options),
        data_dir=data_dir,
        output=data_dir.parent / "server.out",
        environment={**_inherited(), "PYTHONPATH": str(PROJECT)},
    )
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.discard()


@contextmanager
def open_cluster(database_url: str, folder: Path, **settings: Any) -> Iterator[Cluster]:
    """Processes started inside must stop in good order at the end; none runs yet."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = Cluster(database_url, folder, settings)
    try:
        yield opened
        opened.stop()
    finally:
        opened.discard()


@contextmanager
def open_machines(database_url: str, folder: Path, **settings: Any) -> Iterator[Cluster]:
    """Machines that share bytes and master keys; a failed test shows the end of their output."""
    shared = {"blobs": str(folder / "blobs"), "master_keys": str(folder / "master-keys")}
    opened = Cluster(database_url, folder, {**shared, **HASTY, **settings})
    try:
        yield opened
    except BaseException:
        for name, process in opened.processes.items():
            print(f"--- {name}\n{process.output[-3000:]}")
        raise
    finally:
        opened.discard()


def run_command(*words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one command of the command line to its end."""
    return subprocess.run(
        [*UPTRAIL, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


def wait_for(condition: Callable[[], Found], deadline: float = TIMEOUT) -> Found:
    """Wait until the condition gives something true, and return that."""
    end = time.monotonic() + deadline
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not so after {deadline:g} s: {condition}")
        time.sleep(0.02)
    return found


def steps(*processors: str, **options: Any) -> dict[str, Sequence[Any]]:
    """A pipeline of these processors, all with the same options."""
    return {"steps": [{"processor": name, "options": options} for name in processors]}


def install_processors(folder: Path) -> Path:
    """An installed package, as far as Python can tell, that offers processors of the tests."""
    about = folder / "uptrail_fakes-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: uptrail-fakes\nVersion: 1.0\n")
    offered = "\n".join(("[uptrail.processors]", *PROCESSORS))
    (about / "entry_points.txt").write_text(f"{offered}\n")
    return folder


def _inherited() -> dict[str, str]:
    """The environment, but no setting of this machine reaches a process under test."""
    return {name: text for name, text in os.environ.items() if not name.startswith("UPTRAIL_")}


def _serve(roles: Sequence[str]) -> list[str]:
    return ["serve", *(word for role in roles for word in ("--role", role))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
