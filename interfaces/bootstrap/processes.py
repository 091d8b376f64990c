"""Several API processes on one port, and one for the other roles, supervised by a parent.

The parent reserves the port, keeps the database running and publishes the address of the server; it
handles no request itself. Each child accepts connections from sockets that it inherits.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import structlog
from prometheus_client.multiprocess import mark_process_dead

from infrastructure.auth.keys import PostgresKeys
from infrastructure.postgres.pool import make_pool
from infrastructure.settings import Settings
from infrastructure.tasks import cancel_and_wait
from interfaces.bootstrap import listen
from interfaces.bootstrap.container import (
    Database,
    PoolSizes,
    Role,
    callback_base_url,
    open_database,
    require_connections,
)
from interfaces.bootstrap.tasks import (
    StartupFailed,
    TaskFactory,
    cancel_within,
    supervise,
    wait_for_stop_or_failure,
)

# One process of several: how the parent starts it, hears that it is up, and ends it.

# Without the working directory on its path: what lies there is not ours to import.
COMMAND = (sys.executable, "-P", "-m", "interfaces.cli.serve")
METRICS = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it when it is imported
UP_MESSAGE = b"up\n"
ALIVE_MESSAGE = b"alive\n"
HEARTBEAT_INTERVAL = 5.0  # seconds between two signs of life
HEARTBEAT_TIMEOUT = 60.0  # seconds without one, after which a process is stuck

_log = structlog.get_logger(__name__)


class ChildConfig(msgspec.Struct, frozen=True):
    """Configuration of a child, sent on its standard input.

    The pipe also reports the end of the parent: it closes then, in every case.
    """

    name: str
    settings: Settings
    roles: tuple[Role, ...]
    sockets: tuple[int, ...] = ()
    pools: PoolSizes = PoolSizes()

    def line(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=str) + b"\n"


def parse_config(line: bytes) -> ChildConfig:
    """The order of the parent. Raises msgspec.DecodeError."""
    return msgspec.json.decode(line, type=ChildConfig, dec_hook=lambda _, value: Path(value))


class ChildProcess:
    """A process that the parent keeps; `metrics` is the folder in which those of all are added.

    `door` is where it accepts, if it answers.
    """

    def __init__(
        self, order: ChildConfig, metrics: Path, door: listen.ListenSockets | None
    ) -> None:
        self.name = order.name
        self.up = asyncio.Event()
        self._order = order
        self._metrics = metrics
        self._door = door
        self._process: Process | None = None

    @property
    def answers(self) -> bool:
        """True if the child accepts requests."""
        return self._door is not None

    async def live(self) -> None:
        """Start the process and wait for its end; return, or raise its error.

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
            await cancel_and_wait(listening)
            self._forget(process)
        died = ChildExited(f"process {process.pid} ended with {_told(code)}")
        if not self.up.is_set():
            raise StartupFailed(self.name, died)
        raise died

    def kill(self) -> None:
        """Ends the process at once: whatever it acknowledged is durable already."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _start(self) -> Process:
        """In a session of its own: Ctrl-C is for the parent, which passes it on."""
        with ExitStack() as stack:
            sockets = self._door.for_child() if self._door else ()
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
        own = {name: value for name, value in os.environ.items() if name != listen.VARIABLE}
        return own | ({METRICS: str(self._metrics)} if self._door else {})

    async def _listen(self, process: Process) -> None:
        """Hears that the process is up, and that it lives. One that is stuck is killed: the kernel
        would go on giving it its share of the connections."""
        assert process.stdout is not None
        up = False
        try:
            while True:
                async with asyncio.timeout(HEARTBEAT_TIMEOUT if up else None):
                    line = await process.stdout.readline()
                if not line:
                    return
                if line == UP_MESSAGE:
                    up = True
                    self.up.set()
        except TimeoutError:
            _log.error(
                "process_stuck", process=self.name, pid=process.pid, silent_for=HEARTBEAT_TIMEOUT
            )
            self.kill()

    def _forget(self, process: Process) -> None:
        """Requests that a dead process was answering are not under way any more."""
        mark_process_dead(process.pid, str(self._metrics))  # type: ignore[no-untyped-call]
        if self._process is process:
            self._process = None


class ChildExited(Exception):
    """A member ended that should not have."""


def _told(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


KILL_AFTER_GRACE = 10.0  # seconds beyond the grace for a member to end before it is killed


async def serve_in_processes(
    settings: Settings,
    roles: Sequence[Role],
    door: listen.ListenSockets,
    ready: Callable[[listen.Ready], None],
    stopping: asyncio.Event,
) -> None:
    """Serve until a stop is requested; `ready` is called once every child is up.

    Raises what `require_connections` and `open_database` raise, NeverUp for a member that cannot
    begin, PartFailed for one that cannot be kept alive.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        pools = await require_connections(settings, roles)
        database = await stack.enter_async_context(open_database(settings))
        async with make_pool(database.url, name="parent", max_size=1) as pool:
            login = await listen.login_link(PostgresKeys(pool), settings, door)
        metrics = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uptrail-metrics-")))
        given = msgspec.structs.replace(settings, database_url=database.url)
        members = _members(given, roles, pools, door, metrics)

        def at_once() -> None:
            for member in members:
                member.kill()
            listen.force_exit()

        stack.enter_context(listen.stop_on_signals(stopping, at_once))
        async with _supervised(members, database, door, settings.shutdown_grace) as tasks:
            if not await _all_up(members, stopping, tasks):
                return
            with listen.server_file(settings.data_dir, door.url):
                listen.sd_notify("READY=1")
                ready(listen.Ready(door.url, login, tuple(roles)))
                await wait_for_stop_or_failure(stopping, tasks)


def _members(
    settings: Settings,
    roles: Sequence[Role],
    pools: PoolSizes,
    door: listen.ListenSockets,
    metrics: Path,
) -> list[ChildProcess]:
    """Those that answer, and one for whatever else there is to do."""
    others = tuple(role for role in roles if role is not Role.API)
    members = [
        ChildProcess(
            ChildConfig(f"api-{number}", settings, (Role.API,), pools=pools), metrics, door
        )
        for number in range(1, settings.processes + 1)
    ]
    if others:
        # This process passes services and webhook receivers a URL that another process serves.
        base_url = callback_base_url(settings, roles) or None
        changed = msgspec.structs.replace(settings, public_url=base_url)
        members.append(
            ChildProcess(ChildConfig("+".join(others), changed, others, pools=pools), metrics, None)
        )
    return members


async def _all_up(
    members: Sequence[ChildProcess], stopping: asyncio.Event, tasks: Sequence[asyncio.Task[None]]
) -> bool:
    """Return whether all children came up before a stop. Raises NeverUp, PartFailed."""
    up = asyncio.create_task(_up(members), name="up")
    try:
        await wait_for_stop_or_failure(stopping, [up, *tasks])
        return up.done() and not stopping.is_set()
    finally:
        up.cancel()


async def _up(members: Sequence[ChildProcess]) -> None:
    for member in members:
        await member.up.wait()


@asynccontextmanager
async def _supervised(
    members: Sequence[ChildProcess], database: Database, door: listen.ListenSockets, grace: float
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Everything kept alive inside; at the end first the door, then the members, the database."""
    following = _task("database", database.keep_running)
    # Those that answer go on without the one that works, however often it dies.
    tasks = [_task(member.name, member.live, essential=member.answers) for member in members]
    try:
        yield [following, *tasks]
    finally:
        _log.info("stopping")
        listen.sd_notify("STOPPING=1")
        for opened in door.sockets:
            opened.close()
        await cancel_within(*tasks, within=grace + KILL_AFTER_GRACE)
        for member in members:
            member.kill()
        await cancel_within(following, within=KILL_AFTER_GRACE, insist=True)
        _log.info("stopped")


def _task(name: str, work: TaskFactory, *, essential: bool = True) -> asyncio.Task[None]:
    return asyncio.create_task(supervise(name, work, essential=essential), name=name)
