"""Servers under measurement, each in its own process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cpu
from benchmarks.peers.installing import HERE, node_peer, python_peer

START_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Server:
    """A running server: its port, its process and, for Uptrail, an admin key."""

    port: int
    process: subprocess.Popen[bytes]
    key: str = ""

    def peak_memory(self) -> int:
        """Return the peak resident size in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the process and its descendants, such as PostgreSQL."""
        return cpu.of_tree(self.process.pid)


@contextmanager
def bare_receiver(folder: Path) -> Iterator[Server]:
    port = free_port()
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.bare_receiver", str(folder), str(port)]
    with _running(command, port) as process:
        yield Server(port, process)


@contextmanager
def sink(kind: str) -> Iterator[Server]:
    """Run a server that drops request bodies; `kind` as in `benchmarks.sink`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.sink", str(port), kind]
    with _running(command, port) as process:
        yield Server(port, process)


@contextmanager
def uptrail(
    folder: Path, *roles: str, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run Uptrail with an embedded PostgreSQL in `folder`; `settings` are environment variables."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "uptrail"), "serve"]
    command += ["--port", str(port), "--data-dir", str(folder)]
    for role in roles:
        command += ["--role", role]
    with _running(command, port, {"UPTRAIL_LOG_LEVEL": "error", **(settings or {})}) as process:
        yield Server(port, process, (folder / "admin.key").read_text().strip())


@contextmanager
def tuspyserver(folder: Path) -> Iterator[Server]:
    """Run tuspyserver under uvicorn, one worker, uvloop and httptools. Raises Missing."""
    port = free_port()
    folder.mkdir(parents=True)
    command = [python_peer(), "-m", "uvicorn", "tuspy_server:app", "--app-dir", str(HERE)]
    command += ["--port", str(port), "--loop", "uvloop", "--http", "httptools"]
    command += ["--workers", "1", "--no-access-log", "--log-level", "warning"]
    with _running(command, port, {"FILES": str(folder)}) as process:
        yield Server(port, process)


@contextmanager
def tus_node_server(folder: Path) -> Iterator[Server]:
    """Run @tus/server with @tus/file-store on Node.js. Raises Missing."""
    port = free_port()
    folder.mkdir(parents=True)
    command = [node_peer(), str(HERE / "tus_server.mjs"), str(folder), str(port)]
    with _running(command, port, {"NODE_ENV": "production"}) as process:
        yield Server(port, process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(
    command: Sequence[str], port: int, more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UPTRAIL_")}
    environment |= more or {}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        _wait_for(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError("the server did not open its port")
