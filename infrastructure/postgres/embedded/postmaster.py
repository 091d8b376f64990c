"""Processes of the embedded server: their log, how they are found again, and how they are ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Final, Self

import msgspec

from infrastructure import files
from infrastructure.postgres.embedded.data_directory import ServerDir
from infrastructure.postgres.embedded.system import (
    SOCKET,
    EmbeddedPostgresError,
    SystemUser,
)

MAX_LOG_BYTES: Final = 8 * 1024 * 1024
_TAIL_BYTES: Final = 16 * 1024
_TAIL_LINES: Final = 20


class Log:
    """Log of the server's processes, bounded at two files of 8 MiB."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> int:
        """A descriptor to append to; the server writes through it, needing no permission."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return files.open_file(self._path, flags, 0o600)

    def tail(self) -> str:
        """The last lines."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return "\n".join(lines[-_TAIL_LINES:])
        return ""

    def trim(self, limit: int = MAX_LOG_BYTES) -> None:
        """Once it is too long, keep it as the previous log and go on in an empty one."""
        # Emptied, not renamed: the server goes on appending through the same descriptor.
        if self._path.stat().st_size > limit:
            previous = self._path.with_name(f"{self._path.name}.1")
            shutil.copy(self._path, previous)
            files.truncate(self._path, 0)


def spawn(
    command: Sequence[str],
    account: SystemUser,
    *,
    log: int,
    lease: int,
    stdin: int = DEVNULL,
) -> Popen[bytes]:
    """
    Run a program as the account, in a session of its own, holding the lease while it lives.

    No variable of our environment reaches it: PGDATA, PGOPTIONS and their like change what
    PostgreSQL does.
    """
    return Popen(
        command,
        stdin=stdin,
        stdout=log,
        stderr=log,
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        umask=0o077,
        pass_fds=(lease,),
        start_new_session=True,
        user=account.uid if account.is_another else None,
        group=account.gid if account.is_another else None,
        extra_groups=[] if account.is_another else None,
    )


def find_tagged(mark: str) -> dict[int, str]:
    """The command lines of PostgreSQL's living processes that contain the mark, by pid."""
    return {pid: line for pid, line in _command_lines() if _is_marked(line, mark)}


def is_tagged(pid: int, mark: str) -> bool:
    """True while this process lives and is one of PostgreSQL with the mark."""
    if sys.platform != "linux":
        return pid in find_tagged(mark)
    with suppress(OSError):
        return _is_marked(_read(pid), mark)
    return False


def _is_marked(line: str, mark: str) -> bool:
    program = re.split("\0| -D ", line, maxsplit=1)[0]
    return mark in line and (program.startswith("postgres:") or program.endswith("postgres"))


def _command_lines() -> Iterator[tuple[int, str]]:
    if sys.platform != "linux":
        yield from _listed_by_ps()
        return
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdecimal():
                yield int(entry), _read(int(entry))


def _read(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")


def _listed_by_ps() -> Iterator[tuple[int, str]]:
    command = ["ps", "-axww", "-o", "pid=,command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        pid, _, rest = line.strip().partition(" ")
        yield int(pid), rest


class Postmaster(msgspec.Struct, frozen=True):
    """Contents of a server's postmaster.pid."""

    pid: int
    socket_folder: str
    status: str

    @classmethod
    def read(cls, home: ServerDir) -> Self | None:
        """Read the file; return None if it is missing or incomplete."""
        with suppress(OSError, ValueError, IndexError):
            lines = _pid_file(home).read_text().splitlines()
            return cls(pid=int(lines[0]), socket_folder=lines[4], status=lines[7].strip())
        return None

    @property
    def is_ready(self) -> bool:
        return self.status == "ready"


def clear_stale_files(home: ServerDir, socket_folder: Path) -> None:
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
        files.discard(stale)


def signal_stop(home: ServerDir, how: signal.Signals) -> None:
    """Signal the server; if its first process is dead, end the ones that it left behind."""
    postmaster = Postmaster.read(home)
    if postmaster and is_tagged(postmaster.pid, home.mark):
        with suppress(ProcessLookupError):
            os.kill(postmaster.pid, how)
    else:
        kill_orphans(home, signal.SIGQUIT)


def is_orphaned(home: ServerDir) -> bool:
    """Return whether the first process of the server was killed and left its file behind."""
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
    """Return whether the server writes the checkpoint at the end of a shutdown or recovery."""
    return any("performing" in line for line in find_tagged(home.mark).values())


def kill_orphans(home: ServerDir, how: signal.Signals) -> None:
    """Kill the processes that a killed server left behind; its commits are safe."""
    for pid in find_tagged(home.mark):
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def _pid_file(home: ServerDir) -> Path:
    return home.cluster / "postmaster.pid"
