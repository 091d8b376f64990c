"""One process of several: how the parent starts it, hears that it is up, and ends it."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import structlog
from prometheus_client.multiprocess import mark_process_dead

from infrastructure.settings import Settings
from infrastructure.tasks import end
from interfaces.bootstrap.connections import PoolSizes
from interfaces.bootstrap.door import Door
from interfaces.bootstrap.manager import VARIABLE
from interfaces.bootstrap.role import Role
from interfaces.bootstrap.supervision import NeverUp

# Without the working directory on its path: what lies there is not ours to import.
COMMAND = (sys.executable, "-P", "-m", "interfaces.cli.member")
METRICS = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it when it is imported
UP = b"up\n"
ALIVE = b"alive\n"
SIGN = 5.0  # seconds between two signs of life
SILENT = 60.0  # seconds without one, after which a process is stuck

_log = structlog.get_logger(__name__)


class Order(msgspec.Struct, frozen=True):
    """What a member is told on its standard input: who it is and what to do.

    The line is its lifeline as well: it closes when the parent is gone, however that went.
    """

    name: str
    settings: Settings
    roles: tuple[Role, ...]
    sockets: tuple[int, ...] = ()
    pools: PoolSizes = PoolSizes()

    def line(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=str) + b"\n"


def read_order(line: bytes) -> Order:
    """The order of the parent. Raises msgspec.DecodeError."""
    return msgspec.json.decode(line, type=Order, dec_hook=lambda _, value: Path(value))


class Member:
    """A process that the parent keeps; `metrics` is the folder in which those of all are added.

    `door` is where it accepts, if it answers.
    """

    def __init__(self, order: Order, metrics: Path, door: Door | None) -> None:
        self.name = order.name
        self.up = asyncio.Event()
        self._order = order
        self._metrics = metrics
        self._door = door
        self._process: Process | None = None

    @property
    def answers(self) -> bool:
        """Whether it accepts requests."""
        return self._door is not None

    async def live(self) -> None:
        """Starts the process and waits for its end, of which it tells by returning or raising.

        When cancelled, asks the process to stop and waits for that. Raises NeverUp where it ends
        before it was up for the first time, Died where it ends with an error later.
        """
        process = await self._start()
        listening = asyncio.create_task(self._listen(process), name=f"{self.name}-listening")
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            raise
        finally:
            await end(listening)
            self._forget(process)
        died = Died(f"process {process.pid} ended with {_told(code)}")
        if not self.up.is_set():
            raise NeverUp(self.name, died)
        raise died

    def kill(self) -> None:
        """Ends the process at once: whatever it acknowledged is durable already."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _start(self) -> Process:
        """In a session of its own: Ctrl-C is for the parent, which passes it on."""
        with ExitStack() as stack:
            sockets = self._door.for_a_member() if self._door else ()
            for opened in sockets:
                stack.enter_context(opened)
            inherited = tuple(opened.fileno() for opened in sockets)
            self._process = process = await asyncio.create_subprocess_exec(
                *COMMAND,
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=inherited,
                start_new_session=True,
                env=self._environment(),
            )
        assert process.stdin is not None
        process.stdin.write(msgspec.structs.replace(self._order, sockets=inherited).line())
        return process

    def _environment(self) -> Mapping[str, str]:
        own = {name: value for name, value in os.environ.items() if name != VARIABLE}
        return own | ({METRICS: str(self._metrics)} if self._door else {})

    async def _listen(self, process: Process) -> None:
        """Hears that the process is up, and that it lives. One that is stuck is killed: the kernel
        would go on giving it its share of the connections."""
        assert process.stdout is not None
        up = False
        try:
            while True:
                async with asyncio.timeout(SILENT if up else None):
                    line = await process.stdout.readline()
                if not line:
                    return
                if line == UP:
                    up = True
                    self.up.set()
        except TimeoutError:
            _log.error("process_stuck", process=self.name, pid=process.pid, silent_for=SILENT)
            self.kill()

    def _forget(self, process: Process) -> None:
        """Requests that a dead process was answering are not under way any more."""
        mark_process_dead(process.pid, str(self._metrics))  # type: ignore[no-untyped-call]
        if self._process is process:
            self._process = None


class Died(Exception):
    """A member ended that should not have."""


def _told(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
