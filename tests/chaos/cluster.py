"""Two processes of each role over one data folder, any of which may be killed or stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from infrastructure.postgres.embedded.server import EmbeddedPostgres
from tests.server_process import Cluster, wait_for

UNREACHABLE = 5  # how a process ends that finds no database when it starts
DROPPED = 0.5  # the share of connections that go when the network has a bad moment

API, ORCHESTRATOR, WORKER = "api", "orchestrator", "worker"
NAMES = ("api-1", "api-2", "orchestrator-1", "orchestrator-2", "worker-1", "worker-2")

# Half of our connections, each by the toss of a coin; the one that asks is spared.
_DROP = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name LIKE 'uptrail-%%' AND pid <> pg_backend_pid() AND random() < %s"""


class ProcessCluster(Cluster):
    """Processes that share the embedded PostgreSQL of their data folder."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        super().__init__(None, folder, settings)
        self.data_dir.mkdir()
        self._postgres = EmbeddedPostgres(self.data_dir)
        self._supervisor = threading.Lock()  # held while processes are killed or started

    @property
    def postgres_url(self) -> str:
        """The URL of the database, which is started if it is not running."""
        return self._postgres.start()

    @property
    def ports(self) -> list[int]:
        return [process.port for process in self.processes.values() if process.port]

    def run(self, name: str) -> None:
        self.serve(name, name.partition("-")[0], data_dir=self.data_dir)

    def kill_and_start(self, name: str) -> None:
        with self._supervisor:
            self.processes[name].end(signal.SIGKILL)
            self.processes[name].start()

    def stop_for(self, name: str, seconds: float) -> None:
        """The process stands still, as in a machine that was suspended, and then goes on."""
        process = self.processes[name]
        process.send(signal.SIGSTOP)
        time.sleep(seconds)
        process.send(signal.SIGCONT)

    def kill_postgres(self) -> None:
        with suppress(OSError, IndexError, ValueError):  # it may be between two starts
            file = self.data_dir / "postgres" / "cluster" / "postmaster.pid"
            os.kill(int(file.read_text().split()[0]), signal.SIGKILL)

    def drop_connections(self) -> None:
        with suppress(psycopg.Error), psycopg.connect(self.postgres_url, autocommit=True) as server:
            server.execute(_DROP, (DROPPED,))

    def revive(self) -> None:
        """Restart processes as a supervisor does; only a start without a database may fail."""
        with self._supervisor:
            for name, process in self.processes.items():
                if (code := process.poll()) is not None:
                    assert code == UNREACHABLE, (name, code)
                    process.start()

    def stop_all(self) -> None:
        """Every process ends in time when it is asked to, whatever its exit code."""
        for process in self.processes.values():
            process.send(signal.SIGTERM)
        try:
            for process in self.processes.values():
                process.wait()
        finally:
            self.discard()
            self._postgres.stop()

    def discard_database(self) -> None:
        """Root's database does not lie in the folder of the test."""
        self._postgres.discard()


@contextmanager
def open_process_cluster(folder: Path, **settings: Any) -> Iterator[ProcessCluster]:
    """A running cluster; no process that it started is left afterwards."""
    cluster = ProcessCluster(folder, settings)
    try:
        cluster.run(NAMES[0])
        key = cluster.data_dir / "admin.key"
        wait_for(lambda: key.exists() and key.read_text())
        for name in NAMES[1:]:
            cluster.run(name)
        yield cluster
    except BaseException:  # its database stays, to be looked at
        for name, process in cluster.processes.items():
            print(f"--- {name}\n{process.output[-4000:]}")
        cluster.stop_all()
        raise
    cluster.stop_all()
    cluster.discard_database()
