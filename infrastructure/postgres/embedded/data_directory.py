"""The folder that holds one server, and where it lies for a data directory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

from infrastructure import files
from infrastructure.postgres.embedded.system import (
    EmbeddedPostgresError,
    SystemUser,
    fingerprint,
    system_folder,
)


class ServerDir(msgspec.Struct, frozen=True):
    """
    Everything that belongs to one server.

    `cluster` and the socket folder are the server's (0700); the rest, password, access rules,
    log and locks, is ours alone, so that the server cannot change the rules it runs under.
    """

    path: Path

    @property
    def cluster(self) -> Path:
        return self.path / "cluster"

    @property
    def unfinished(self) -> Path:
        """A cluster being made; it becomes `cluster` when it is complete."""
        return self.path / "cluster.new"

    @property
    def password(self) -> Path:
        return self.path / "password"

    @property
    def upkeep(self) -> Path:
        """Mark: the cluster's role may do what an erasure takes."""
        return self.path / "upkeep"

    @property
    def access_rules(self) -> Path:
        return self.path / "pg_hba.conf"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    @property
    def decisions(self) -> Path:
        """Lock held while the server is started or stopped."""
        return self.path / "decisions.lock"

    @property
    def users(self) -> Path:
        """Shared lock of every process that uses the server."""
        return self.path / "users.lock"

    @property
    def running_lock(self) -> Path:
        """Lock, inherited: held as long as any process of the server lives."""
        return self.path / "running.lock"

    @property
    def mark(self) -> str:
        """Text in the command line of every process of this server."""
        return f"uptrail-{fingerprint(self.path)}"


def server_dir_path(data_dir: Path) -> Path:
    """Return the path of the server's directory, or of the link to it."""
    return data_dir.resolve() / "postgres"


def resolve_server_dir(data_dir: Path, account: SystemUser) -> ServerDir:
    """
    The home of the data directory's server: `<data_dir>/postgres`.

    Root's data directory may lie where the server's user cannot go (in root's own home, say). No
    permission is loosened for it: the home is then made below /var/lib/uptrail/clusters, and
    `<data_dir>/postgres` is a link to it. A link to nowhere is a lost database and an error,
    never a reason to begin with an empty one.
    """
    if not data_dir.exists():
        _make(data_dir, account)
    place = server_dir_path(data_dir)
    if not os.path.lexists(place):
        _found(place, account)
    _require_ours(place, account)
    return ServerDir(place.resolve())


def _make(folder: Path, account: SystemUser) -> None:
    """Create the folder for us alone; 0711 lets another user's server pass through it."""
    if files.make_folder(folder) and account.is_another:
        folder.chmod(0o711)


def _found(place: Path, account: SystemUser) -> None:
    if not account.is_another or account.can_enter(place.parent):
        _make(place, account)
    else:
        _found_elsewhere(place, account)
    files.sync_folder(place.parent)


def _found_elsewhere(place: Path, account: SystemUser) -> None:
    clusters = system_folder() / "clusters"
    _make(clusters, account)
    home = Path(tempfile.mkdtemp(prefix=f"{place.parent.name}-", dir=clusters))
    home.chmod(0o711)
    files.write_file_atomically(home / "data-directory", f"{place.parent}\n".encode())
    files.sync_folder(clusters)
    try:
        files.symlink(home, place)
    except FileExistsError:  # another process was quicker
        files.remove_tree(home)


def _require_ours(place: Path, account: SystemUser) -> None:
    if not place.is_dir():
        raise EmbeddedPostgresError(
            f"the database of {place.parent} is gone: {place.resolve()} is no folder",
            f"restore it, or remove {place} to begin with an empty one",
        )
    for owner in (SystemUser.of(place), SystemUser.of(place.resolve())):
        if owner.uid != os.geteuid():
            raise EmbeddedPostgresError(
                f"the database in {place} belongs to {owner.name}",
                f"run uptrail as {owner.name}, choose another data directory",
            )
    if not account.can_enter(place.resolve()):
        raise EmbeddedPostgresError(
            f"{account.name}, who runs the database, can no longer enter {place.resolve()}",
            "give the folders above it back their x permission",
        )
