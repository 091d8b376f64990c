"""The server's first process: started, found again, asked to go."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import Self

import msgspec

from infrastructure.postgres.embedded.cluster import (
    Cluster,
    Log,
    find_tagged,
    forced_settings,
    is_tagged,
    options,
    spawn,
)
from infrastructure.postgres.embedded.data_directory import ServerDir
from infrastructure.postgres.embedded.system import SOCKET, EmbeddedPostgresError


class Postmaster(msgspec.Struct, frozen=True):
    """Contents of a server's postmaster.pid."""

    pid: int
    socket_folder: str
    status: str

    @classmethod
    def read(cls, home: ServerDir) -> Self | None:
        """None if there is no such file, or it is not complete yet."""
        with suppress(OSError, ValueError, IndexError):
            lines = _pid_file(home).read_text().splitlines()
            return cls(pid=int(lines[0]), socket_folder=lines[4], status=lines[7].strip())
        return None

    @property
    def is_ready(self) -> bool:
        return self.status == "ready"


def launch(cluster: Cluster, socket_folder: Path) -> Popen[bytes]:
    """
    Start the server; it runs on when we die.

    Raises EmbeddedPostgresError if a server that is not ours runs on the cluster already.
    """
    home = cluster.home
    _clear_away(home, socket_folder)
    program = str(cluster.binaries / "postgres")
    command = (program, "-D", str(home.cluster), *options(forced_settings(home, socket_folder)))
    log = Log(home.log).open()
    try:
        process = spawn(command, cluster.account, log=log, lease=cluster.lease)
    finally:
        os.close(log)
    # Reaps the postmaster whenever it exits, so that it does not remain as a zombie.
    threading.Thread(target=process.wait, name="uptrail-postgres-exit", daemon=True).start()
    return process


def _clear_away(home: ServerDir, socket_folder: Path) -> None:
    """Remove a dead server's lock files: PostgreSQL heeds them if the pid is another's now."""
    # We hold the lease, so no server of ours is alive; one started by hand may be.
    with suppress(FileNotFoundError, ValueError, IndexError):
        pid = int(_pid_file(home).read_text().splitlines()[0])
        if is_tagged(pid, str(home.cluster)):
            raise EmbeddedPostgresError(
                f"a PostgreSQL that uptrail did not start (pid {pid}) runs on {home.cluster}",
                "stop it",
            )
    socket = socket_folder / SOCKET
    for stale in (_pid_file(home), socket.with_name(f"{SOCKET}.lock"), socket):
        stale.unlink(missing_ok=True)


def signal_stop(home: ServerDir, how: signal.Signals) -> None:
    """Signal the server; if its first process is dead, end the ones that it left behind."""
    postmaster = Postmaster.read(home)
    if postmaster and is_tagged(postmaster.pid, home.mark):
        with suppress(ProcessLookupError):
            os.kill(postmaster.pid, how)
    else:
        kill_orphans(home, signal.SIGQUIT)


def is_orphaned(home: ServerDir) -> bool:
    """True when the server's first process was killed, and left its file behind."""
    postmaster = Postmaster.read(home)
    return postmaster is not None and not is_tagged(postmaster.pid, home.mark)


def is_running(home: ServerDir) -> bool:
    """Return whether a server runs and accepts connections."""
    postmaster = Postmaster.read(home)
    return (
        postmaster is not None
        and postmaster.is_ready
        and is_tagged(postmaster.pid, home.mark)
        and Path(postmaster.socket_folder, SOCKET).exists()
    )


def is_writing_checkpoint(home: ServerDir) -> bool:
    """True during the checkpoint at the end of a shutdown or of recovery."""
    return any("performing" in line for line in find_tagged(home.mark).values())


def kill_orphans(home: ServerDir, how: signal.Signals) -> None:
    """End what a killed server left behind; its commits are safe, and nothing else counts."""
    for pid in find_tagged(home.mark):
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def _pid_file(home: ServerDir) -> Path:
    return home.cluster / "postmaster.pid"
