"""Pool of processes that decode untrusted files, each file in a sandboxed child of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import msgspec

from infrastructure.processors.decoder_server import ALL, HEADER, MAX_REQUEST_BYTES

MAX_RESPONSE_BYTES = 256 * 1024  # bytes of JSON that a decoder may answer
SERVER = Path(__file__).with_name("decoder_server.py")

DECODERS = (
    "infrastructure.processors.archive_child",
    "infrastructure.processors.libmagic_child",
    "infrastructure.processors.sandbox_probe",
    "infrastructure.processors.thumbnail_child",
)
"""Modules with decoders, loaded before a server drops its privileges."""


class DecoderLost(Exception):
    """The server process ended while it was decoding; another attempt gets a new one."""


class DecoderLimits(msgspec.Struct, frozen=True):
    """Limits of one run: bytes of `memory`, processor `seconds`, bytes of returned `data`."""

    memory: int
    seconds: int
    data: int = 0


class Decoded(msgspec.Struct, frozen=True):
    """Result of a decoder. A hostile file may have compromised it: trust no value in it.

    `answer` has `limit` if a limit ended the run, `failed` after an unexpected error.
    """

    answer: dict[str, Any]
    data: bytes


class _Server:
    """A fork server and the socket it listens on."""

    def __init__(self, process: Process, channel: socket.socket) -> None:
        self.process = process
        self._channel = channel

    @classmethod
    async def start(cls, modules: Sequence[str]) -> _Server:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",  # neither the environment nor the working directory say what it imports
                    str(SERVER),
                    *modules,
                    stdin=theirs.fileno(),
                    stdout=DEVNULL,
                    start_new_session=True,  # so that its children can be ended with it
                    env={"PATH": os.defpath},
                    cwd="/",
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return cls(process, ours)

    async def exchange(self, file: int, order: bytes) -> Decoded:
        try:
            # Nothing else is under way, so the socket's buffer takes header and descriptor whole.
            socket.send_fds(self._channel, [HEADER.pack(len(order), 0)], [file])
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(self._channel, order)
            answer, data = HEADER.unpack(await self._read(HEADER.size))
            text = await self._read(answer)
            return Decoded(_decode(text), await self._read(data))
        except OSError as error:
            raise DecoderLost(f"the decoder process is gone: {error}") from error

    async def _read(self, length: int) -> bytes:
        loop = asyncio.get_running_loop()
        content = bytearray()
        while len(content) < length:
            chunk = await loop.sock_recv(self._channel, length - len(content))
            if not chunk:
                raise DecoderLost("the decoder process ended without an answer")
            content += chunk
        return bytes(content)

    async def end(self) -> None:
        """Kill the server with its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._channel.close()
        await self.process.wait()


class DecoderPool:
    """At most `most` fork servers, started when they are needed and kept for the next file.

    `free` are those that wait for work, `busy` those that have some. Use as an async context
    manager.
    """

    def __init__(self, modules: Sequence[str] = DECODERS, most: int | None = None) -> None:
        self._modules = modules
        self.free: list[_Server] = []
        self.busy: set[_Server] = set()
        self._slots = asyncio.Semaphore(most or os.cpu_count() or 1)

    async def __aenter__(self) -> DecoderPool:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the processes that are waiting for work."""
        while self.free:
            await self.free.pop().end()

    async def run(
        self,
        function: str,
        source: Path | bytes,
        order: Mapping[str, Any],
        limits: DecoderLimits,
        *,
        restrictions: Sequence[str] = ALL,
    ) -> Decoded:
        """Call `module:name` with a file and an order in a sandboxed child; return its answer.

        The module must be one of the pool's. If the caller is cancelled, the child ends at once.
        Raises DecoderLost, OSError where the file cannot be opened.
        """
        request = {
            "function": function,
            "order": dict(order),
            "memory": limits.memory,
            "seconds": limits.seconds,
            "most": MAX_RESPONSE_BYTES + limits.data,
            "restrictions": restrictions,
        }
        encoded = json.dumps(request).encode()
        if function.partition(":")[0] not in self._modules or len(encoded) > MAX_REQUEST_BYTES:
            raise ValueError(f"no decoder takes this order: {function}, {len(encoded)} bytes")
        async with self._slots:
            with ExitStack() as opened:
                file = await asyncio.to_thread(_open, source)
                opened.callback(os.close, file)
                return await self._run(file, encoded)

    async def _run(self, file: int, order: bytes) -> Decoded:
        server = await self._ready()
        self.busy.add(server)
        try:
            decoded = await server.exchange(file, order)
        except BaseException:
            await server.end()
            raise
        finally:
            self.busy.discard(server)
        self.free.append(server)
        return decoded

    async def _ready(self) -> _Server:
        """A server that lives: one may have been killed while it waited."""
        while self.free:
            server = self.free.pop()
            if server.process.returncode is None:
                return server
            await server.end()
        return await _Server.start(self._modules)


def _open(source: Path | bytes) -> int:
    """Open for reading only: no child can change it. Bytes go into a file without a name."""
    if isinstance(source, Path):
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    with NamedTemporaryFile(prefix="uptrail-decode-") as file:
        file.write(source)
        file.flush()
        return os.open(file.name, os.O_RDONLY | os.O_CLOEXEC)


def _decode(text: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        return {"failed": f"the decoder's answer makes no sense: {error}"}
    return answer
