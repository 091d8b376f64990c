"""The embedded server as its users see it: start, connect, stop."""

from __future__ import annotations

import atexit
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from infrastructure.postgres.embedded import account, lifecycle, locks
from infrastructure.postgres.embedded.errors import EmbeddedPostgresError
from infrastructure.postgres.embedded.home import Home, place_of, settle
from infrastructure.postgres.embedded.membership import Membership
from infrastructure.postgres.embedded.postmaster import runs


class EmbeddedPostgres:
    """
    A PostgreSQL of our own in a data directory, shared by every process that asks for it.

    It runs in a session of its own: it outlives a killed user, is found again by the next, and
    stops when its last user stops it. Its files lie in `<data_dir>/postgres`; `home.settle`
    says where root's may lie instead.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._mutex = threading.RLock()
        self._membership: Membership | None = None

    def start(self) -> str:
        """
        The URL of the database `uptrail`, once it takes connections.

        Makes, starts, recovers or joins the server, and waits as long as recovery takes.
        Called again, it makes sure that the server still runs. Raises EmbeddedPostgresError.
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
        Whether the server that was started goes on, as its files and its process tell.

        It is not asked: a connection would cost both sides ten milliseconds.
        """
        membership = self._membership
        return membership is not None and membership.is_of_this_process and runs(membership.home)

    def stop(self) -> None:
        """
        Leave the server, and if nobody else uses it, shut it down and wait for its end.

        Does nothing when not started, or in a forked child. Raises EmbeddedPostgresError if the
        server does not end.
        """
        with self._mutex:
            membership = self._membership
            if membership is None or not membership.is_of_this_process:
                return
            try:
                with locks.exclusive(membership.home.decisions):
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
                _remove(place_of(self._data_dir))
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
        runner = account.choose()
        home = settle(self._data_dir, runner)
        with locks.exclusive(home.decisions):
            membership = self._join(home)
            try:
                return lifecycle.bring_up(home, runner)
            except BaseException:
                with suppress(EmbeddedPostgresError):  # the first one says more
                    self._leave(membership)
                raise

    def _join(self, home: Home) -> Membership:
        if self._membership is None or not self._membership.is_of_this_process:
            self._membership = Membership(home)
            atexit.register(self.stop)
        return self._membership

    def _leave(self, membership: Membership) -> None:
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
    home = Home(place.resolve())
    with locks.exclusive(home.decisions):
        if not locks.is_free(home.running):
            raise EmbeddedPostgresError(f"another process uses {place}", "stop it first")
        shutil.rmtree(home.path)
        if place.is_symlink():
            place.unlink()
