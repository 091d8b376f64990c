"""System account, directories and locks of the embedded server.

The server runs as the current user, or for root as a dedicated system user."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from infrastructure import files

# The one thing that can go wrong with the embedded server, said in full.

USE_ANOTHER: Final = "or set UPTRAIL_DATABASE_URL to a PostgreSQL of your own"


class EmbeddedPostgresError(Exception):
    """The embedded server failed; the message has the last log lines and the fix."""

    def __init__(self, problem: str, remedy: str, log: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        self.log = log
        said = f"\nThe server's log ends with:\n{log}" if log else ""
        super().__init__(f"{problem}{said}\nWhat to do: {remedy}, {USE_ANOTHER}.")


if sys.platform != "win32":
    import pwd

SYSTEM_USER: Final = "uptrail"
_READ, _ENTER = 0o4, 0o1


class SystemUser(msgspec.Struct, frozen=True):
    """User and group ids of a process."""

    uid: int
    gid: int

    @classmethod
    def of(cls, path: Path) -> Self:
        status = path.lstat()
        return cls(status.st_uid, status.st_gid)

    @property
    def is_another(self) -> bool:
        return self.uid != os.geteuid()

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"

    @property
    def is_named(self) -> bool:
        return not self.name.startswith("uid ")

    def own(self, path: Path) -> None:
        if self.is_another:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_read(self, path: Path) -> bool:
        """Return whether the permission bits allow reading; access lists are ignored."""
        return self._may(path, _READ) and self.can_enter(path.parent)

    def can_enter(self, folder: Path) -> bool:
        return all(self._may(each, _ENTER) for each in (folder, *folder.parents))

    def _may(self, path: Path, bit: int) -> bool:
        status = path.stat()
        if status.st_uid == self.uid:
            bit <<= 6
        elif status.st_gid == self.gid:
            bit <<= 3
        return bool(stat.S_IMODE(status.st_mode) & bit)


def server_user() -> SystemUser:
    """Return the current user; for root the user `uptrail`, created if needed."""
    if os.geteuid() != 0:
        return _oneself()
    return _system_user() or _make_system_user()


def _oneself() -> SystemUser:
    account = SystemUser(os.geteuid(), os.getegid())
    if not account.is_named:
        raise EmbeddedPostgresError(
            f"PostgreSQL cannot run as {account.name}, which has no entry in /etc/passwd",
            "run as a user that has one",
        )
    return account


def _system_user() -> SystemUser | None:
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return None
    if entry.pw_uid == 0:
        raise EmbeddedPostgresError(
            f"the user {SYSTEM_USER!r} is root by another name, and PostgreSQL refuses root",
            f"give {SYSTEM_USER!r} a user id of its own",
        )
    return SystemUser(entry.pw_uid, entry.pw_gid)


def _make_system_user() -> SystemUser:
    done = subprocess.run(_useradd(), capture_output=True, text=True, check=False)
    if account := _system_user():  # also when another process was quicker
        return account
    raise _no_user(done.stderr.strip())


def _useradd() -> list[str]:
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    if useradd := shutil.which("useradd", path=folders):
        options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        return [useradd, *options, "--shell", "/bin/false", SYSTEM_USER]
    if adduser := shutil.which("adduser", path=folders):  # busybox
        return [adduser, "-S", "-D", "-H", "-s", "/bin/false", SYSTEM_USER]
    raise _no_user("there is neither useradd nor adduser")


def _no_user(reason: str) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"PostgreSQL refuses to run as root, and the user {SYSTEM_USER!r} "
        f"could not be made: {reason}",
        f"create it (useradd --system {SYSTEM_USER}), run uptrail as another user than root",
    )


# Folders and files that no other user can have prepared, created completely or not at all.

SYSTEM_FOLDER = Path("/var/lib/uptrail")
PORT: Final = 5432
SOCKET: Final = f".s.PGSQL.{PORT}"
_SOCKET_PATH_LIMIT: Final = 103  # bytes, on the strictest platform
_SEPARATOR: Final = ","  # between hosts in a conninfo, and between socket folders


def make_private_dir(folder: Path, account: SystemUser) -> Path:
    """
    Make a folder of mode 0700 that belongs to the account, or accept the one made before.

    Raises EmbeddedPostgresError if another user's folder, or a link, has its name.
    """
    with suppress(FileExistsError):
        files.mkdir(folder, 0o700)
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
    """Return the folder of root that every user can pass through."""
    if files.make_folder(SYSTEM_FOLDER):
        SYSTEM_FOLDER.chmod(0o755)
    status = SYSTEM_FOLDER.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or not status.st_mode & 0o001:
        raise EmbeddedPostgresError(
            f"{SYSTEM_FOLDER} is not a folder of root that others can enter",
            f"move it away, or chown root and chmod 755 {SYSTEM_FOLDER}",
        )
    return SYSTEM_FOLDER


def socket_folder(home: Path, account: SystemUser) -> Path:
    """Return the socket directory: the server's, or a short path if that is too long."""
    candidates = [home / "socket"]
    short = f"uptrail-{fingerprint(home)}"
    candidates += [folder / short for folder in _short_folders(account)]
    for folder in candidates:
        if _fits(folder) and account.can_enter(folder.parent):
            return make_private_dir(folder, account)
    raise EmbeddedPostgresError(
        f"no path for the server's socket is short enough: {candidates[-1]}",
        "choose a data directory with a shorter path",
    )


def fingerprint(home: Path) -> str:
    """Return a short, stable name for a path."""
    return hashlib.sha256(os.fsencode(home)).hexdigest()[:12]


def _short_folders(account: SystemUser) -> list[Path]:
    runtime = "/run" if account.is_another else os.environ.get("XDG_RUNTIME_DIR", "")
    folders = [Path(each) for each in (runtime, tempfile.gettempdir(), "/tmp") if each]  # noqa: S108
    return [folder.resolve() for folder in folders if folder.is_dir()]


def _fits(folder: Path) -> bool:
    socket = os.fsencode(folder / SOCKET)
    return len(socket) <= _SOCKET_PATH_LIMIT and _SEPARATOR not in str(folder)


# File locks that the kernel drops when their holder dies, however it dies.


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock; wait for it without a limit."""
    fd = _open(path)
    try:
        files.lock(fd)
        yield
    finally:
        release(fd)


def lock_shared(path: Path) -> int:
    """Join the holders of the lock until the returned descriptor is closed."""
    fd = _open(path)
    files.lock_shared(fd)
    return fd


def is_only_holder(fd: int) -> bool:
    """Return whether no other process shares the lock; it is then held exclusively."""
    return files.try_lock(fd)


def try_lock(path: Path) -> int | None:
    """
    Take the lock if it is free.

    A process that inherits the descriptor holds the lock too, and the last of them to end
    frees it: close it after handing it on, never unlock it.
    """
    fd = _open(path)
    if is_only_holder(fd):
        return fd
    os.close(fd)
    return None


def is_free(path: Path) -> bool:
    """Return whether no process holds the lock."""
    fd = try_lock(path)
    if fd is None:
        return False
    os.close(fd)
    return True


def release(fd: int) -> None:
    """Unlock, also for a forked child that still has the descriptor."""
    try:
        files.unlock(fd)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return files.open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
