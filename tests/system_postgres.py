"""PostgreSQL of the system's packages with its own roles, for one test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@contextmanager
def system_postgres() -> Iterator[str]:
    """The URL of its database `postgres`, as a superuser, over a socket."""
    binaries = _binaries()
    if binaries is None:
        if os.environ.get("UPTRAIL_REQUIRE_ALL") == "1":
            pytest.fail("there is no PostgreSQL of the system: install the package postgresql")
        pytest.skip("there is no PostgreSQL of the system")
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="uptrail-test-"))
    try:
        if as_user:
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
        data = folder / "data"
        _run(*as_user, binaries / "initdb", "-A", "trust", "-U", "postgres", "-D", data, "-N")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=on"
        control = (*as_user, binaries / "pg_ctl", "-D", data, "-w")
        _run(*control, "-o", options, "-l", folder / "log", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            _run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, cwd="/")
