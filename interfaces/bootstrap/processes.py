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
from infrastructure.files import make_folder
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

# A child process: how the parent starts, watches and ends it.

# -P: a module in the working directory must not be imported in place of ours.
COMMAND = (sys.executable, "-P", "-m", "interfaces.cli.serve")
METRICS = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it when it is imported
UP_MESSAGE = b"up\n"
ALIVE_MESSAGE = b"alive\n"
HEARTBEAT_INTERVAL = 5.0  # seconds between two heartbeats
HEARTBEAT_TIMEOUT = 60.0  # seconds without a heartbeat after which a process counts as stuck

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
    """Parse the configuration that the parent sends. Raises msgspec.DecodeError."""
    return msgspec.json.decode(line, type=ChildConfig, dec_hook=lambda _, value: Path(value))


class ChildProcess:
    """Child process that the parent starts and watches.

    `metrics` is the folder in which the metrics of all children are summed. `listeners` are the
    sockets from which it accepts requests; None for a child without the role api.
    """

    def __init__(
        self, config: ChildConfig, metrics: Path, listeners: listen.ListenSockets | None
    ) -> None:
        self.name = config.name
        self.up = asyncio.Event()
        self._config = config
        self._metrics = metrics
        self._listeners = listeners
        self._process: Process | None = None

    @property
    def serves_http(self) -> bool:
        """Return whether the child accepts requests."""
        return self._listeners is not None

    async def run(self) -> None:
        """Start the process and wait for its end, which is an error.

        When cancelled, asks the process to stop and waits for that. Raises StartupFailed if it ends
        before it was ready, ChildExited if it ends later.
        """
        process = await self._start()
        reading = asyncio.create_task(self._read_messages(process), name=f"{self.name}-messages")
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            raise
        finally:
            await cancel_and_wait(reading)
            self._forget(process)
        died = ChildExited(f"process {process.pid} ended with {_describe_exit(code)}")
        if not self.up.is_set():
            raise StartupFailed(self.name, died)
        raise died

    def kill(self) -> None:
        """Kill the process: everything that it acknowledged is durable already."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _start(self) -> Process:
        """Start the process in its own session: Ctrl-C reaches the parent, which passes it on."""
        with ExitStack() as stack:
            sockets = self._listeners.for_child() if self._listeners else ()
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
        process.stdin.write(msgspec.structs.replace(self._config, sockets=inherited).line())
        return process

    def _environment(self) -> Mapping[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if name != listen.NOTIFY_SOCKET
        }
        return inherited | ({METRICS: str(self._metrics)} if self._listeners else {})

    async def _read_messages(self, process: Process) -> None:
        """Read the messages of the process: that it is ready, and its heartbeats.

        A process without heartbeats is killed: the kernel would continue to assign connections to
        it.
        """
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
        """Drop the gauges of a dead process: its requests are not running any more."""
        mark_process_dead(process.pid, str(self._metrics))  # type: ignore[no-untyped-call]
        if self._process is process:
            self._process = None


class ChildExited(Exception):
    """A child process ended without being asked to."""


def _describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


KILL_AFTER_GRACE = 10.0  # seconds beyond the grace period until a child is killed


async def serve_in_processes(
    settings: Settings,
    roles: Sequence[Role],
    listeners: listen.ListenSockets,
    ready: Callable[[listen.Ready], None],
    stopping: asyncio.Event,
) -> None:
    """Serve until a stop is requested; `ready` is called once every child is ready.

    Raises what `require_connections` and `open_database` raise, StartupFailed for a child that does
    not become ready, TaskFailed for one that ends again and again.
    """
    make_folder(settings.data_dir)
    async with AsyncExitStack() as stack:
        pools = await require_connections(settings, roles)
        database = await stack.enter_async_context(open_database(settings))
        async with make_pool(database.url, name="parent", max_size=1) as pool:
            login = await listen.login_link(PostgresKeys(pool), settings, listeners)
        metrics = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uptrail-metrics-")))
        resolved = msgspec.structs.replace(settings, database_url=database.url)
        children = _child_processes(resolved, roles, pools, listeners, metrics)

        def kill_all() -> None:
            for child in children:
                child.kill()
            listen.force_exit()

        stack.enter_context(listen.stop_on_signals(stopping, kill_all))
        async with _supervised(children, database, listeners, settings.shutdown_grace) as tasks:
            if not await _wait_until_ready(children, stopping, tasks):
                return
            with listen.server_file(settings.data_dir, listeners.url):
                listen.sd_notify("READY=1")
                ready(listen.Ready(listeners.url, login, tuple(roles)))
                await wait_for_stop_or_failure(stopping, tasks)


def _child_processes(
    settings: Settings,
    roles: Sequence[Role],
    pools: PoolSizes,
    listeners: listen.ListenSockets,
    metrics: Path,
) -> list[ChildProcess]:
    """Return the children: those of the role api, and one for all other roles."""
    others = tuple(role for role in roles if role is not Role.API)
    children = [
        ChildProcess(
            ChildConfig(f"api-{number}", settings, (Role.API,), pools=pools), metrics, listeners
        )
        for number in range(1, settings.processes + 1)
    ]
    if others:
        # This process passes services and webhook receivers a URL that another process serves.
        base_url = callback_base_url(settings, roles) or None
        changed = msgspec.structs.replace(settings, public_url=base_url)
        children.append(
            ChildProcess(ChildConfig("+".join(others), changed, others, pools=pools), metrics, None)
        )
    return children


async def _wait_until_ready(
    children: Sequence[ChildProcess], stopping: asyncio.Event, tasks: Sequence[asyncio.Task[None]]
) -> bool:
    """Return whether all children became ready before a stop. Raises StartupFailed, TaskFailed."""
    up = asyncio.create_task(_up(children), name="up")
    try:
        await wait_for_stop_or_failure(stopping, [up, *tasks])
        return up.done() and not stopping.is_set()
    finally:
        up.cancel()


async def _up(children: Sequence[ChildProcess]) -> None:
    for child in children:
        await child.up.wait()


@asynccontextmanager
async def _supervised(
    children: Sequence[ChildProcess],
    database: Database,
    listeners: listen.ListenSockets,
    grace: float,
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Keep the database and the children running inside the block.

    At its end the sockets are closed first, then the children end, then the database.
    """
    database_task = _task("database", database.keep_running)
    # The children of the role api continue without the other one, however often it ends.
    tasks = [_task(child.name, child.run, essential=child.serves_http) for child in children]
    try:
        yield [database_task, *tasks]
    finally:
        _log.info("stopping")
        listen.sd_notify("STOPPING=1")
        for opened in listeners.sockets:
            opened.close()
        await cancel_within(*tasks, within=grace + KILL_AFTER_GRACE)
        for child in children:
            child.kill()
        await cancel_within(database_task, within=KILL_AFTER_GRACE, insist=True)
        _log.info("stopped")


def _task(name: str, work: TaskFactory, *, essential: bool = True) -> asyncio.Task[None]:
    return asyncio.create_task(supervise(name, work, essential=essential), name=name)
