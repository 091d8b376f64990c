"""A real clamd with a database of one signature: that of the EICAR test file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support import free_port

# In pieces, so that no scanner takes this file, or the repository, for infected.
EICAR = "X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + "EICAR-STANDARD-" + "ANTIVIRUS-TEST-FILE" + "!$H+H*"
PATIENCE = 60.0  # seconds for clamd to come up
LARGEST = 1024 * 1024  # bytes that it takes


def eicar() -> bytes:
    return EICAR.encode()


@contextmanager
def running_clamd() -> Iterator[dict[str, str]]:
    """Run clamd; yield its addresses by kind of socket. Skips the test without clamd."""
    program = shutil.which("clamd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        if os.environ.get("UPTRAIL_REQUIRE_ALL"):
            raise AssertionError("clamd is not installed")
        pytest.skip("clamd is not installed")
    with TemporaryDirectory(prefix="clamd-") as folder:  # short: a socket's path has 107 bytes
        config, port = Path(folder) / "clamd.conf", free_port()
        config.write_text(_config(Path(folder), port))
        with (Path(folder) / "out").open("w+") as out:
            clamd = subprocess.Popen([program, f"--config-file={config}"], stdout=out, stderr=out)
            try:
                _wait_for(Path(folder) / "socket", clamd, Path(out.name))
                yield {"unix": f"unix:{folder}/socket", "tcp": f"tcp://127.0.0.1:{port}"}
            finally:
                clamd.kill()
                clamd.wait()


def _config(folder: Path, port: int) -> str:
    database = folder / "database"
    database.mkdir()
    digest = md5(eicar(), usedforsecurity=False).hexdigest()
    (database / "test.hdb").write_text(f"{digest}:{len(eicar())}:Eicar-Test\n")
    return f"""
Foreground yes
DatabaseDirectory {database}
TemporaryDirectory {folder}
LocalSocket {folder}/socket
TCPAddr 127.0.0.1
TCPSocket {port}
StreamMaxLength {LARGEST}
"""


def _wait_for(path: Path, clamd: subprocess.Popen[bytes], out: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not _answers(path):
        assert clamd.poll() is None, out.read_text()
        assert time.monotonic() < end, out.read_text()
        time.sleep(0.05)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
            client.sendall(b"zPING\0")
            return client.recv(5) == b"PONG\0"
        except OSError:
            return False
