"""A pgbouncer in front of a test's PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.support import free_port

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
REQUIRED = os.environ.get("UPTRAIL_REQUIRE_ALL") == "1"

needs_pgbouncer = pytest.mark.skipif(
    PROGRAM is None and not REQUIRED, reason="pgbouncer is not installed"
)


@contextmanager
def pgbouncer(server_url: str, pool_mode: str, **settings: object) -> Iterator[str]:
    """The URL of the same database through a pgbouncer with its defaults, but for `settings`."""
    assert PROGRAM is not None, "pgbouncer is not installed"
    server = conninfo_to_dict(server_url)
    # The socket of an embedded server is in a folder of the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="uptrail-pgbouncer-"))
    owner = _owner(str(server["host"]))
    port = free_port()
    lines = {"listen_addr": "127.0.0.1", "listen_port": port, "auth_type": "any"}
    lines |= {"unix_socket_dir": "", "pool_mode": pool_mode, **settings}
    to = " ".join(
        f"{key}={server[key]}" for key in ("host", "port", "user", "password") if server.get(key)
    )
    file = folder / "pgbouncer.ini"
    listed = "\n".join(f"{key} = {value}" for key, value in lines.items())
    file.write_text(f"[databases]\n* = {to}\n[pgbouncer]\n{listed}\n")
    if owner is not None:
        os.chown(folder, owner, -1)
        os.chown(file, owner, -1)
    log = (folder / "log").open("wb")
    process = subprocess.Popen([PROGRAM, str(file)], user=owner, stdout=log, stderr=log)
    try:
        _wait_for(port, process, folder / "log")
        yield f"postgresql://{server['user']}@127.0.0.1:{port}/{server['dbname']}"
    finally:
        process.kill()
        process.wait()
        log.close()
        shutil.rmtree(folder)


def _owner(host: str) -> int | None:
    """Return the user id for pgbouncer if the tests run as root, which pgbouncer refuses."""
    if os.geteuid() != 0:
        return None
    import pwd

    return os.stat(host).st_uid if host.startswith("/") else pwd.getpwnam("nobody").pw_uid


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        else:
            return
