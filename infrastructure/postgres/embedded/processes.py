"""The processes of a server, known by their command lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen

from infrastructure.postgres.embedded.account import Account


def spawn(
    command: Sequence[str],
    account: Account,
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


def marked(mark: str) -> dict[int, str]:
    """The command lines of PostgreSQL's living processes that contain the mark, by pid."""
    return {pid: line for pid, line in _command_lines() if _is_marked(line, mark)}


def is_marked(pid: int, mark: str) -> bool:
    """True while this process lives and is one of PostgreSQL with the mark."""
    if sys.platform != "linux":
        return pid in marked(mark)
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
