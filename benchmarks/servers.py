"""The servers under measurement, each in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_UP = 60.0  # seconds


@dataclass(frozen=True)
class Server:
    """A running server: its port, its process and, for ours, an admin key."""

    port: int
    process: subprocess.Popen[bytes]
    key: str = ""

    def peak_memory(self) -> int:
        """The largest resident size so far, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


@contextmanager
def bare_receiver(folder: Path) -> Iterator[Server]:
    port = free_port()
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.bare_receiver", str(folder), str(port)]
    with _running(command, port) as process:
        yield Server(port, process)


@contextmanager
def uptrail(folder: Path, *roles: str) -> Iterator[Server]:
    """Uptrail on an embedded PostgreSQL in `folder`."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "uptrail"), "serve"]
    command += ["--port", str(port), "--data-dir", str(folder)]
    for role in roles:
        command += ["--role", role]
    with _running(command, port) as process:
        yield Server(port, process, (folder / "admin.key").read_text().strip())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UPTRAIL_")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        _wait_for(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_UP
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
