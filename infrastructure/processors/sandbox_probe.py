"""Probe of the sandbox: attempts forbidden operations from inside a decoder."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import IO

from infrastructure.processors.decoder_server import Answer, Order

FOLDER = tempfile.gettempdir()  # where everybody may write


def probe(source: IO[bytes], order: Order) -> Answer:
    """Return what the kernel accepted as `applied`, the ids, and for each attempt how it ended.

    An attempt that was refused has the name of the error, one that was not has None.
    """
    attempts: dict[str, Callable[[], object]] = {
        "read_file": lambda: os.close(os.open(sys.executable, os.O_RDONLY)),
        "list_folder": lambda: os.listdir("/"),
        "write_file": _write_file,
        "change_input": lambda: os.write(source.fileno(), b"x"),
        "open_socket": lambda: socket.socket().close(),
        "connect": _connect,
        "start_process": _start_process,
        "execute": _execute,
        "signal_process": lambda: os.kill(os.getppid(), 0),
        "become_root": lambda: os.setuid(0),
    }
    return {
        "applied": order["sandbox"],
        "uid": os.getuid(),
        "gid": os.getgid(),
        "content": source.read(100).decode(errors="replace"),
        "attempts": {name: _outcome(attempt) for name, attempt in attempts.items()},
    }


def _outcome(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except OSError as error:
        return type(error).__name__
    return None


def _write_file() -> None:
    path = os.path.join(FOLDER, f"uptrail-probe-{os.getpid()}")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


def _connect() -> None:
    with socket.socket() as one:
        one.settimeout(1)
        try:
            one.connect(("127.0.0.1", 9))
        except (ConnectionRefusedError, TimeoutError):
            return  # the network was reached


def _start_process() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _execute() -> None:
    try:
        os.execv("/nonexistent", ["/nonexistent"])  # noqa: S606
    except FileNotFoundError:
        return  # the kernel looked for it
