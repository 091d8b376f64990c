"""Tells the service manager how we are, where there is one that asked to be told (sd_notify(3))."""

from __future__ import annotations

import os
import socket

import structlog

VARIABLE = "NOTIFY_SOCKET"

_log = structlog.get_logger(__name__)


def tell_manager(state: str) -> None:
    """Sends `READY=1` or `STOPPING=1` to systemd; does nothing where it does not listen.

    A name that opens with `@` is one of Linux' abstract namespace.
    """
    address = os.environ.get(VARIABLE)
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.connect("\0" + address[1:] if address.startswith("@") else address)
            line.sendall(state.encode())
    except OSError as error:
        _log.warning("manager_not_told", state=state, error=str(error))
