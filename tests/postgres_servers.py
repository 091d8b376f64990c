"""Servers of Debian's PostgreSQL for tests that need a superuser, a standby or a failover."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from tests.support import free_port

_FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_basebackup"), key=lambda p: p.parts[4])
BIN = _FOUND[-1].parent if _FOUND else None
REQUIRED = os.environ.get("UPTRAIL_REQUIRE_ALL") == "1"
STARTING = 60.0  # seconds

needs_postgres = pytest.mark.skipif(
    BIN is None and not REQUIRED, reason="Debian's PostgreSQL is not installed"
)

_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_buffers = 32MB
max_connections = 100
wal_sender_timeout = 0
"""


class Server:
    """One server with superuser `postgres`; every local user may connect."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._dropped = False

    def initialise(self) -> None:
        run("initdb", "-D", str(self.folder), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
        with (self.folder / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS)

    def copy_from(self, primary: Server) -> None:
        """Become a standby of this primary."""
        where = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres")
        run("pg_basebackup", *where, "-D", str(self.folder), "-R", "-X", "stream", "-c", "fast")

    def start(self) -> None:
        log = self.folder.with_name(f"{self.folder.name}.log")
        wait = ("-w", "-t", f"{STARTING:.0f}", "-l", str(log), "-o", f"-p {self.port}")
        run("pg_ctl", "-D", str(self.folder), *wait, "start")

    def stop(self) -> None:
        run("pg_ctl", "-D", str(self.folder), "-m", "immediate", "stop", check=False)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def promote(self) -> None:
        """Return when the standby takes writes."""
        self.execute("SELECT pg_promote()")

    # Ways to vanish.

    def kill(self) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def freeze(self) -> None:
        """Stop every process; the kernel still accepts and acknowledges data."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def drop_packets(self) -> None:
        """Drop all packets to and from this server."""
        for rule in self._rules():
            subprocess.run(["iptables", "-I", "INPUT", *rule], check=True)
        self._dropped = True

    def discard(self) -> None:
        if self._dropped:
            for rule in self._rules():
                subprocess.run(["iptables", "-D", "INPUT", *rule], check=True)
        self.kill()

    def _rules(self) -> list[list[str]]:
        base = ["-i", "lo", "-p", "tcp"]
        return [[*base, end, str(self.port), "-j", "DROP"] for end in ("--dport", "--sport")]

    def _processes(self) -> list[psutil.Process]:
        try:
            first = (self.folder / "postmaster.pid").read_text().split()[0]
            postmaster = psutil.Process(int(first))
            return [postmaster, *postmaster.children(recursive=True)]
        except (OSError, IndexError, psutil.NoSuchProcess):
            return []


@contextmanager
def one_server() -> Iterator[Server]:
    with _folder() as folder:
        server = Server(folder / "server")
        server.initialise()
        try:
            server.start()
            yield server
        finally:
            server.discard()


@contextmanager
def primary_and_standby() -> Iterator[tuple[Server, Server]]:
    """A primary that commits nothing without its synchronous standby, and that standby."""
    with _folder() as folder:
        primary, standby = Server(folder / "primary"), Server(folder / "standby")
        primary.initialise()
        try:
            primary.start()
            standby.copy_from(primary)
            standby.start()
            primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            primary.execute("SELECT pg_reload_conf()")
            deadline = time.monotonic() + STARTING
            state = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            while not primary.execute(state):
                assert time.monotonic() < deadline, "the standby is not synchronous"
                time.sleep(0.05)
            yield primary, standby
        finally:
            primary.discard()
            standby.discard()


def run(program: str, *words: str, check: bool = True) -> None:
    """Run as the user `postgres`, where the tests run as root, which PostgreSQL refuses to be."""
    assert BIN is not None, "Debian's PostgreSQL is not installed"
    user = "postgres" if os.geteuid() == 0 else None
    done = subprocess.run(
        [str(BIN / program), *words],
        user=user,
        group=user,
        extra_groups=[] if user else None,
        stdin=subprocess.DEVNULL,
        # A server that is started keeps its standard output: a pipe would never end.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        cwd="/",
    )
    assert not check or done.returncode == 0, (program, words, done.returncode)


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="uptrail-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
