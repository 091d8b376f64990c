"""Whether a server takes our connections yet, and how to tell that it never will."""

from __future__ import annotations

import os
from typing import Final

import psycopg
from psycopg.pq import PGconn, Ping

from infrastructure.postgres.embedded.cluster import url
from infrastructure.postgres.embedded.errors import EmbeddedPostgresError
from infrastructure.postgres.embedded.folders import SOCKET
from infrastructure.postgres.embedded.home import Home
from infrastructure.postgres.embedded.log import Log
from infrastructure.postgres.embedded.postmaster import Postmaster
from infrastructure.postgres.embedded.processes import is_marked

_CONNECT_TIMEOUT: Final = 10


def reach(home: Home) -> str | None:
    """The URL if it works, None if it does not yet. Raises when waiting will not help."""
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


def _require_socket(home: Home, postmaster: Postmaster) -> None:
    socket = os.path.join(postmaster.socket_folder, SOCKET)
    if not os.path.exists(socket) and is_marked(postmaster.pid, home.mark):
        raise EmbeddedPostgresError(
            f"PostgreSQL runs, but somebody removed its socket {socket}",
            "stop every uptrail on this data directory and start again",
        )
