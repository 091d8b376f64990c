"""A server brought up and shut down: found or launched, waited for, ended."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from signal import Signals
from subprocess import Popen
from typing import Final

from infrastructure.postgres.embedded import binaries, locks
from infrastructure.postgres.embedded.account import Account
from infrastructure.postgres.embedded.cluster import Cluster
from infrastructure.postgres.embedded.errors import EmbeddedPostgresError
from infrastructure.postgres.embedded.folders import socket_folder
from infrastructure.postgres.embedded.home import Home
from infrastructure.postgres.embedded.log import Log
from infrastructure.postgres.embedded.postmaster import (
    Postmaster,
    ask_to_stop,
    dismiss_orphans,
    is_orphaned,
    is_writing_checkpoint,
    launch,
)
from infrastructure.postgres.embedded.readiness import reach

_POLL: Final = 0.01
_ORPHANS_GET: Final = 5.0
# PostgreSQL 18.4 never answers a SIGINT that reaches it while it recovers from a child's crash.
_INSISTENCE = ((10.0, "SIGINT"), (10.0, "SIGQUIT"), (5.0, "SIGKILL"))


def bring_up(home: Home, account: Account) -> str:
    """
    The server's URL once it takes connections. The caller holds `home.decisions`.

    Waits as long as the server lives: recovery takes what it takes.
    Raises EmbeddedPostgresError when it cannot be made, dies or refuses us.
    """
    while True:
        launched = _launch_unless_running(home, account)
        address = _wait_until_ready(home, launched)
        if address is not None:
            return address  # and otherwise the server that ran was on its way out


def shut_down(home: Home) -> None:
    """
    End the server and wait until its last process is gone, ever more firmly.

    Raises EmbeddedPostgresError if that does not happen.
    """
    postmaster = Postmaster.read(home)
    for patience, how in _INSISTENCE:
        if not locks.is_free(home.running):
            ask_to_stop(home, Signals[how])
        if _has_ended(home, patience):
            _remove_socket_folder(home, postmaster)
            return
    raise EmbeddedPostgresError(
        "PostgreSQL does not stop", "end its processes by hand", Log(home.log).tail()
    )


def _has_ended(home: Home, patience: float) -> bool:
    """Wait for the end; a last checkpoint may take longer than the patience."""
    deadline = time.monotonic() + patience
    while not locks.is_free(home.running):
        if time.monotonic() > deadline and not is_writing_checkpoint(home):
            return False
        time.sleep(_POLL)
    return True


def _launch_unless_running(home: Home, account: Account) -> Popen[bytes] | None:
    lease = locks.lease(home.running)
    if lease is None:
        return None
    try:
        runner = _runner(home, account)
        cluster = Cluster(home, runner, binaries.locate(runner), lease)
        cluster.make_ready()
        return launch(cluster, socket_folder(home.path, runner))
    finally:
        os.close(lease)  # closed, not unlocked: the server inherited it


def _runner(home: Home, account: Account) -> Account:
    """Who made the cluster runs it; PostgreSQL insists."""
    if not os.path.lexists(home.cluster):
        return account
    owner = Account.of(home.cluster)
    if owner.uid == account.uid or (account.is_another and not owner.is_named):
        return owner  # a nameless one is `uptrail` of another container with this volume
    raise EmbeddedPostgresError(
        f"the cluster {home.cluster} belongs to {owner.name}, not to {account.name}",
        f"give it back (chown -R {account.name} {home.cluster})",
    )


def _wait_until_ready(home: Home, launched: Popen[bytes] | None) -> str | None:
    """The URL, or None when a server that we did not launch has ended instead."""
    begun = time.monotonic()
    while True:
        address = reach(home)
        if address is not None:
            return address
        if launched is not None and launched.poll() is not None:
            raise _died(home, launched.returncode)
        if launched is None and locks.is_free(home.running):
            return None
        if is_orphaned(home):
            late = time.monotonic() > begun + _ORPHANS_GET
            dismiss_orphans(home, Signals["SIGKILL" if late else "SIGQUIT"])
        time.sleep(_POLL)


def _died(home: Home, code: int) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"PostgreSQL ended while starting (exit status {code})",
        "read why below, put it right and start again",
        Log(home.log).tail(),
    )


def _remove_socket_folder(home: Home, postmaster: Postmaster | None) -> None:
    if postmaster is not None and not postmaster.socket_folder.startswith(str(home.path)):
        with suppress(OSError):
            os.rmdir(postmaster.socket_folder)
