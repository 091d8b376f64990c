"""Who is measured side by side: how each is started, and what it is sent for the same job."""

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

Starting = Callable[[Path], AbstractContextManager[Server]]


def nothing() -> None:
    """What most contenders need beyond what is installed."""


@dataclass(frozen=True)
class Contender:
    """A server, and its way to take files.

    `small` makes requests that carry so many files of 10 KiB; `stream` makes the head of one
    that carries so many bytes, once the upload is created. `needs` installs what it needs, or
    raises Missing.
    """

    name: str
    serve: Starting
    small: Callable[[Server, int], list[bytes]]
    stream: Callable[[Server, int], bytes]
    needs: Callable[[], object] = nothing


def _ours(server: Server, files: int) -> list[bytes]:
    batch = start_batch(server)
    return [creation(server, batch, f"{n}.bin") for n in range(files)]


def _bundles(server: Server, files: int) -> list[bytes]:
    batch = start_batch(server)
    starts = range(0, files, FILES_IN_A_BUNDLE)
    return [
        bundle(server, batch, [f"{n}.bin" for n in range(start, start + FILES_IN_A_BUNDLE)])
        for start in starts
    ]


def _bare(server: Server, files: int) -> list[bytes]:
    return [bare_request(SMALL)] * files


def _theirs(server: Server, files: int) -> list[bytes]:
    return [tus_creation(server, PEERS_PATH, f"{n}.bin") for n in range(files)]


def _stream(collection: str, server: Server, size: int) -> bytes:
    return patch(server, create(server, "one.bin", size, collection), size)


def _uptrail_api(folder: Path) -> AbstractContextManager[Server]:
    return uptrail(folder, "api")


OURS = Contender("uptrail", _uptrail_api, _ours, partial(_stream, UPLOADS))
BUNDLES = Contender("uptrail, bundles", _uptrail_api, _bundles, partial(_stream, UPLOADS))
BARE = Contender(
    "bare aiohttp receiver", bare_receiver, _bare, lambda server, size: bare_head(size)
)
TUS_NODE = Contender(
    "@tus/server", tus_node_server, _theirs, partial(_stream, PEERS_PATH), node_peer
)
TUSPY = Contender("tuspyserver", tuspyserver, _theirs, partial(_stream, PEERS_PATH), python_peer)
