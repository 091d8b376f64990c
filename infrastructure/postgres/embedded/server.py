"""The embedded server as its users see it: start, connect, stop."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from signal import Signals
from subprocess import Popen
from types import TracebackType
from typing import Final

import psycopg
from psycopg.pq import PGconn, Ping

from infrastructure import files
from infrastructure.postgres.embedded import binaries, system
from infrastructure.postgres.embedded.cluster import Cluster, launch, url
from infrastructure.postgres.embedded.data_directory import (
    ServerDir,
    resolve_server_dir,
    server_dir_path,
)
from infrastructure.postgres.embedded.postmaster import (
    Log,
    Postmaster,
    is_orphaned,
    is_running,
    is_tagged,
    is_writing_checkpoint,
    kill_orphans,
    signal_stop,
)
from infrastructure.postgres.embedded.system import (
    SOCKET,
    EmbeddedPostgresError,
    SystemUser,
    socket_folder,
)

# Whether a server takes our connections yet, and how to tell that it never will.

_CONNECT_TIMEOUT: Final = 10


def try_connect(home: ServerDir) -> str | None:
    """Return the URL if a connection works, None if not yet. Raises if waiting is useless."""
    postmaster = Postmaster.read(home)
    if postmaster is None or not postmaster.is_ready:
        return None
    _require_socket(home, postmaster)
    address = url(home, postmaster.socket_folder)
    for _ in range(2):  # it may become ready between a refusal and the ping
        try:
            psycopg.connect(address, connect_timeout=_CONNECT_TIMEOUT).close()
            return address
        except psycopg.OperationalError as error:
            if PGconn.ping(address.encode()) != Ping.OK:
                return None
            refusal = error
    raise EmbeddedPostgresError(
        f"PostgreSQL runs, but refuses us: {refusal}",
        f"stop every uptrail on this data directory, remove {home.password} "
        "(a new one is made) and start again",
        Log(home.log).tail(),
    )


def _require_socket(home: ServerDir, postmaster: Postmaster) -> None:
    socket = os.path.join(postmaster.socket_folder, SOCKET)
    if not os.path.exists(socket) and is_tagged(postmaster.pid, home.mark):
        raise EmbeddedPostgresError(
            f"PostgreSQL runs, but somebody removed its socket {socket}",
            "stop every uptrail on this data directory and start again",
        )


# A server brought up and shut down: found or launched, waited for, ended.

_POLL_INTERVAL: Final = 0.01
_ORPHAN_TIMEOUT: Final = 5.0
# PostgreSQL 18.4 never answers a SIGINT that reaches it while it recovers from a child's crash.
_INSISTENCE = ((10.0, "SIGINT"), (10.0, "SIGQUIT"), (5.0, "SIGKILL"))


def start_server(home: ServerDir, account: SystemUser) -> str:
    """Start the server and return its URL once it accepts connections.

    The caller holds `home.decisions`. Waits as long as the server lives, because recovery may take
    long. Raises EmbeddedPostgresError if the server cannot be created, dies or refuses the
    connection.
    """
    while True:
        launched = _launch_unless_running(home, account)
        address = _wait_until_ready(home, launched)
        if address is not None:
            return address  # and otherwise the server that ran was on its way out


def stop_server(home: ServerDir) -> None:
    """
    End the server and wait until its last process is gone, ever more firmly.

    Raises EmbeddedPostgresError if that does not happen.
    """
    postmaster = Postmaster.read(home)
    for patience, how in _INSISTENCE:
        if not system.is_free(home.running_lock):
            signal_stop(home, Signals[how])
        if _has_ended(home, patience):
            _remove_socket_folder(home, postmaster)
            return
    raise EmbeddedPostgresError(
        "PostgreSQL does not stop", "end its processes by hand", Log(home.log).tail()
    )


def _has_ended(home: ServerDir, patience: float) -> bool:
    """Wait for the end; a last checkpoint may take longer than the patience."""
    deadline = time.monotonic() + patience
    while not system.is_free(home.running_lock):
        if time.monotonic() > deadline and not is_writing_checkpoint(home):
            return False
        time.sleep(_POLL_INTERVAL)
    return True


def _launch_unless_running(home: ServerDir, account: SystemUser) -> Popen[bytes] | None:
    lease = system.try_lock(home.running_lock)
    if lease is None:
        return None
    try:
        runner = _runner(home, account)
        cluster = Cluster(home, runner, binaries.binaries_dir(runner), lease)
        cluster.make_ready()
        return launch(cluster, socket_folder(home.path, runner))
    finally:
        os.close(lease)  # closed, not unlocked: the server inherited it


def _runner(home: ServerDir, account: SystemUser) -> SystemUser:
    """Return the account that created the cluster: PostgreSQL requires it to run the server."""
    if not os.path.lexists(home.cluster):
        return account
    owner = SystemUser.of(home.cluster)
    if owner.uid == account.uid or (account.is_another and not owner.is_named):
        return owner  # a nameless one is `uptrail` of another container with this volume
    raise EmbeddedPostgresError(
        f"the cluster {home.cluster} belongs to {owner.name}, not to {account.name}",
        f"give it back (chown -R {account.name} {home.cluster})",
    )


def _wait_until_ready(home: ServerDir, launched: Popen[bytes] | None) -> str | None:
    """Return the URL, or None if a server that another process launched has ended."""
    begun = time.monotonic()
    while True:
        address = try_connect(home)
        if address is not None:
            return address
        if launched is not None and launched.poll() is not None:
            raise _died(home, launched.returncode)
        if launched is None and system.is_free(home.running_lock):
            return None
        if is_orphaned(home):
            late = time.monotonic() > begun + _ORPHAN_TIMEOUT
            kill_orphans(home, Signals["SIGKILL" if late else "SIGQUIT"])
        time.sleep(_POLL_INTERVAL)


def _died(home: ServerDir, code: int) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"PostgreSQL ended while starting (exit status {code})",
        "read why below, put it right and start again",
        Log(home.log).tail(),
    )


def _remove_socket_folder(home: ServerDir, postmaster: Postmaster | None) -> None:
    if postmaster is not None and not postmaster.socket_folder.startswith(str(home.path)):
        with suppress(OSError):
            files.rmdir(postmaster.socket_folder)


# One user's share in a server: the last to end it shuts the server down.

_LOG_CHECK_INTERVAL: Final = 10.0


class ServerRefCount:
    """Reference of one process to a server; it also keeps the log short."""

    def __init__(self, home: ServerDir) -> None:
        self.home = home
        self._process = os.getpid()
        self._users = system.lock_shared(home.users)
        self._ended = threading.Event()
        threading.Thread(target=self._keep_log, name="uptrail-postgres-log", daemon=True).start()

    @property
    def is_of_this_process(self) -> bool:
        return self._process == os.getpid()

    def end(self) -> None:
        """Shut the server down if unused. The caller holds `home.decisions`."""
        self._ended.set()
        try:
            if system.is_only_holder(self._users):
                stop_server(self.home)
        finally:
            system.release(self._users)

    def _keep_log(self) -> None:
        while not self._ended.wait(_LOG_CHECK_INTERVAL):
            with suppress(OSError):
                Log(self.home.log).trim()


class EmbeddedPostgres:
    """
    Embedded PostgreSQL in a data directory, shared by all processes that use it.

    The server runs in its own session: it survives a killed process, is found by the next one, and
    stops with its last user. Its files are in `<data_dir>/postgres`, or for root in a system
    directory (`data_directory.py`).
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._mutex = threading.RLock()
        self._membership: ServerRefCount | None = None

    def start(self) -> str:
        """Return the URL of the database `uptrail`, once it accepts connections.

        Creates, starts, recovers or joins the server. A repeated call checks that the server still
        runs. Raises EmbeddedPostgresError.
        """
        if sys.platform == "win32":
            raise EmbeddedPostgresError("there is no embedded server on Windows yet", "use WSL")
        with self._mutex:
            try:
                return self._start()
            except OSError as error:
                raise self._failed("start", error) from error

    def runs(self) -> bool:
        """
        Return whether the started server runs, judged by its files and its process.

        Without a connection, which would cost ten milliseconds.
        """
        membership = self._membership
        return (
            membership is not None and membership.is_of_this_process and is_running(membership.home)
        )

    def stop(self) -> None:
        """
        Release the server; if no other process uses it, shut it down and wait for its end.

        Does nothing when not started, or in a forked child. Raises EmbeddedPostgresError if the
        server does not end.
        """
        with self._mutex:
            membership = self._membership
            if membership is None or not membership.is_of_this_process:
                return
            try:
                with system.exclusive(membership.home.decisions):
                    self._leave(membership)
            except OSError as error:
                raise self._failed("stop", error) from error

    def discard(self) -> None:
        """
        Stop, and remove the database for good: for demonstrations and tests.

        Raises EmbeddedPostgresError if another process uses it.
        """
        with self._mutex:
            self.stop()
            try:
                _remove(server_dir_path(self._data_dir))
            except OSError as error:
                raise self._failed("be removed", error) from error

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> str:
        runner = system.server_user()
        home = resolve_server_dir(self._data_dir, runner)
        with system.exclusive(home.decisions):
            membership = self._join(home)
            try:
                return start_server(home, runner)
            except BaseException:
                with suppress(EmbeddedPostgresError):  # the first error is the useful one
                    self._leave(membership)
                raise

    def _join(self, home: ServerDir) -> ServerRefCount:
        if self._membership is None or not self._membership.is_of_this_process:
            self._membership = ServerRefCount(home)
            atexit.register(self.stop)
        return self._membership

    def _leave(self, membership: ServerRefCount) -> None:
        self._membership = None
        atexit.unregister(self.stop)
        membership.end()

    def _failed(self, what: str, error: OSError) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(
            f"PostgreSQL in {self._data_dir} could not {what}: {error}",
            "check the permissions and the space of that folder",
        )


def _remove(place: Path) -> None:
    if not place.exists():
        return
    home = ServerDir(place.resolve())
    with system.exclusive(home.decisions):
        if not system.is_free(home.running_lock):
            raise EmbeddedPostgresError(f"another process uses {place}", "stop it first")
        files.remove_tree(home.path)
        if place.is_symlink():
            files.unlink(place)
