"""Folders and files made so that nobody else can have prepared them, and whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from infrastructure.postgres.embedded.account import Account
from infrastructure.postgres.embedded.errors import EmbeddedPostgresError

SYSTEM_FOLDER = Path("/var/lib/uptrail")
PORT: Final = 5432
SOCKET: Final = f".s.PGSQL.{PORT}"
_SOCKET_PATH_LIMIT: Final = 103  # bytes, on the strictest platform
_SEPARATOR: Final = ","  # between hosts in a conninfo, and between socket folders


def private(folder: Path, account: Account) -> Path:
    """
    Make a folder of mode 0700 that belongs to the account, or accept the one made before.

    Raises EmbeddedPostgresError if somebody else's folder, or a link, has its name.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    ours = status.st_uid in (account.uid, os.geteuid())
    if not (stat.S_ISDIR(status.st_mode) and ours and not status.st_mode & 0o077):
        raise EmbeddedPostgresError(
            f"{folder} is not a private folder of {account.name}",
            "find out who made it, and remove it",
        )
    account.own(folder)
    return folder


def system_folder() -> Path:
    """Root's own folder, that every user can pass through."""
    with suppress(FileExistsError):
        SYSTEM_FOLDER.mkdir(parents=True)
        SYSTEM_FOLDER.chmod(0o755)
    status = SYSTEM_FOLDER.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or not status.st_mode & 0o001:
        raise EmbeddedPostgresError(
            f"{SYSTEM_FOLDER} is not a folder of root that others can enter",
            f"move it away, or chown root and chmod 755 {SYSTEM_FOLDER}",
        )
    return SYSTEM_FOLDER


def socket_folder(home: Path, account: Account) -> Path:
    """Where the socket goes: in the server's home, or if that path is too long, a short one."""
    candidates = [home / "socket"]
    short = f"uptrail-{fingerprint(home)}"
    candidates += [folder / short for folder in _short_folders(account)]
    for folder in candidates:
        if _fits(folder) and account.can_enter(folder.parent):
            return private(folder, account)
    raise EmbeddedPostgresError(
        f"no path for the server's socket is short enough: {candidates[-1]}",
        "choose a data directory with a shorter path",
    )


def fingerprint(home: Path) -> str:
    """A short name for a path, the same every time."""
    return hashlib.sha256(os.fsencode(home)).hexdigest()[:12]


def _short_folders(account: Account) -> list[Path]:
    runtime = "/run" if account.is_another else os.environ.get("XDG_RUNTIME_DIR", "")
    folders = [Path(each) for each in (runtime, tempfile.gettempdir(), "/tmp") if each]  # noqa: S108
    return [folder.resolve() for folder in folders if folder.is_dir()]


def _fits(folder: Path) -> bool:
    socket = os.fsencode(folder / SOCKET)
    return len(socket) <= _SOCKET_PATH_LIMIT and _SEPARATOR not in str(folder)


def write_whole(path: Path, text: str, *, mode: int) -> None:
    """Write the file whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, mode)
        file.write(text)
        file.flush()
        os.fsync(fd)
    new.rename(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make the names in the folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
