"""Servers that are compared, how each is started, and the requests that each receives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.peers.installing import node_peer, python_peer
from benchmarks.servers import Server, bare_receiver, tus_node_server, tuspyserver, uptrail
from benchmarks.uploads import (
    SMALL,
    UPLOADS,
    bare_head,
    bare_request,
    bundle,
    create,
    creation,
    patch,
    start_batch,
    tus_creation,
)

FILES_IN_A_BUNDLE = 500
PEERS_PATH = "/files"  # where both peers are mounted

ServerFactory = Callable[[Path], AbstractContextManager[Server]]


def install_nothing() -> None:
    """Install nothing: the default for servers that need no installation."""


@dataclass(frozen=True)
class Contender:
    """A server, and the requests that upload files to it.

    `small` builds requests for a number of 10 KiB files; `stream` creates an upload of a given
    size and builds the head of the request for its bytes. `needs` installs the server, or
    raises Missing.
    """

    name: str
    serve: ServerFactory
    small: Callable[[Server, int], list[bytes]]
    stream: Callable[[Server, int], bytes]
    needs: Callable[[], object] = install_nothing


def _uptrail_creations(server: Server, files: int) -> list[bytes]:
    batch = start_batch(server)
    return [creation(server, batch, f"{n}.bin") for n in range(files)]


def _uptrail_bundles(server: Server, files: int) -> list[bytes]:
    batch = start_batch(server)
    starts = range(0, files, FILES_IN_A_BUNDLE)
    return [
        bundle(server, batch, [f"{n}.bin" for n in range(start, start + FILES_IN_A_BUNDLE)])
        for start in starts
    ]


def _bare_requests(server: Server, files: int) -> list[bytes]:
    return [bare_request(SMALL)] * files


def _tus_creations(server: Server, files: int) -> list[bytes]:
    return [tus_creation(server, PEERS_PATH, f"{n}.bin") for n in range(files)]


def _stream(collection: str, server: Server, size: int) -> bytes:
    return patch(server, create(server, "one.bin", size, collection), size)


def _uptrail_api(folder: Path) -> AbstractContextManager[Server]:
    return uptrail(folder, "api")


UPTRAIL = Contender("uptrail", _uptrail_api, _uptrail_creations, partial(_stream, UPLOADS))
UPTRAIL_BUNDLES = Contender(
    "uptrail, bundles", _uptrail_api, _uptrail_bundles, partial(_stream, UPLOADS)
)
BARE_RECEIVER = Contender(
    "bare aiohttp receiver", bare_receiver, _bare_requests, lambda server, size: bare_head(size)
)
TUS_NODE = Contender(
    "@tus/server", tus_node_server, _tus_creations, partial(_stream, PEERS_PATH), node_peer
)
TUSPYSERVER = Contender(
    "tuspyserver", tuspyserver, _tus_creations, partial(_stream, PEERS_PATH), python_peer
)
