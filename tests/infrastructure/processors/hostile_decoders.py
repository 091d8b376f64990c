"""Decoders that behave as if a file had taken them over."""

from __future__ import annotations

import os
import time
from typing import IO

from infrastructure.processors.decoder_server import HEADER, Answer, Order

_REPLY = 4


def prepare() -> None:
    """Load what `descriptors` needs."""
    os.listdir("/")


def echo(source: IO[bytes], order: Order) -> Answer:
    return {"order": order, "read": len(source.read())}


def surroundings(source: IO[bytes], order: Order) -> Answer:
    return {"environment": sorted(os.environ), "descriptors": _descriptors()}


def data(source: IO[bytes], order: Order) -> tuple[Answer, bytes]:
    return {}, bytes(order["size"])


def spins(source: IO[bytes], order: Order) -> Answer:
    while True:
        pass


def sleeps(source: IO[bytes], order: Order) -> Answer:
    time.sleep(3600)
    return {}


def hoards(source: IO[bytes], order: Order) -> Answer:
    return {"size": len(bytearray(2**32))}


def crashes(source: IO[bytes], order: Order) -> Answer:
    os.abort()


def ends(source: IO[bytes], order: Order) -> Answer:
    os._exit(7)


def babbles(source: IO[bytes], order: Order) -> Answer:
    while True:
        os.write(_REPLY, bytes(65536))


def forges(source: IO[bytes], order: Order) -> Answer:
    """Answer twice: the second frame must not become the answer to the next order."""
    frame = HEADER.pack(2, 0) + b"{}"
    os.write(_REPLY, frame + frame)
    os._exit(0)


def nests(source: IO[bytes], order: Order) -> Answer:
    text = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    os.write(_REPLY, HEADER.pack(len(text), 0) + text)
    os._exit(0)


def raises(source: IO[bytes], order: Order) -> Answer:
    raise SystemExit("x" * 100_000)


def _descriptors() -> list[int]:
    found = []
    for number in range(256):
        try:
            os.lseek(number, 0, os.SEEK_CUR)
        except OSError as error:
            if error.errno == 9:  # EBADF
                continue
        found.append(number)
    return found
