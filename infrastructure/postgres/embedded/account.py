"""Which system user the server runs as: oneself, or for root a user of its own."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

import msgspec

from infrastructure.postgres.embedded.errors import EmbeddedPostgresError

if sys.platform != "win32":
    import pwd

SYSTEM_USER: Final = "uptrail"
_READ, _ENTER = 0o4, 0o1


class Account(msgspec.Struct, frozen=True):
    """A user and group to run as, by number."""

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
        """Judged by permission bits alone: where an access list says more, we say no."""
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


def choose() -> Account:
    """Oneself; for root, whom PostgreSQL refuses, the user `uptrail`, made if need be."""
    if os.geteuid() != 0:
        return _oneself()
    return _system_user() or _make_system_user()


def _oneself() -> Account:
    account = Account(os.geteuid(), os.getegid())
    if not account.is_named:
        raise EmbeddedPostgresError(
            f"PostgreSQL cannot run as {account.name}, which has no entry in /etc/passwd",
            "run as a user that has one",
        )
    return account


def _system_user() -> Account | None:
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        return None
    if entry.pw_uid == 0:
        raise EmbeddedPostgresError(
            f"the user {SYSTEM_USER!r} is root by another name, and PostgreSQL refuses root",
            f"give {SYSTEM_USER!r} a user id of its own",
        )
    return Account(entry.pw_uid, entry.pw_gid)


def _make_system_user() -> Account:
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
