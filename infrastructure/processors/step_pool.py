"""Subprocess pool for the steps of installed packages: their crashes do not end the worker.

Each process runs one step at a time. A step that takes too long, or is cancelled, ends with its
process and everything it has started; a process that dies is the error of the step that it ran.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog

from application.pipeline import Processor, Step, StepContext, StepInput
from application.worker.step_result import (
    MAX_RESULT_BYTES,
    StepError,
    StepFailure,
    describe_error,
)
from infrastructure.processors import step_messages
from infrastructure.tasks import shield_result

MAX_STEPS_PER_PROCESS = 100  # after which it is replaced: what its steps have leaked goes with it
IDLE_TIMEOUT = 60.0  # seconds after which a process without work is ended
LOAD_TIMEOUT = 60.0  # seconds in which a package is imported
CHECK_TIMEOUT = 60.0  # seconds in which the options of a pipeline are checked
EXIT_TIMEOUT = 2.0  # seconds from the end of a process's output to its own end
KILL_TIMEOUT = 10.0  # seconds for a keeper to end everything below it
MAX_READERS = 64  # of one step at once
STREAM_BUFFER_BYTES = 1 << 20  # bytes that are read ahead

_KEEPER = Path(__file__).with_name("step_keeper.py")
_NOT_FOR_STEPS = ("PROMETHEUS_MULTIPROC_DIR", "NOTIFY_SOCKET")

_log = structlog.get_logger(__name__)


class StepPool:
    """At most `size` processes, started when they are needed. Use as an async context manager.

    `memory` is how many bytes the process of a step may use that does not say so itself.
    """

    def __init__(self, *, size: int, memory: int) -> None:
        self._memory = memory
        self._slots = asyncio.Semaphore(size)
        self._free: list[_StepProcess] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        while self._free:
            self._end(self._free.pop())
        if self._ending:
            await asyncio.wait(self._ending)

    def processor(self, name: str) -> PooledProcessor:
        """Return the installed processor of this name, to be run in this pool."""
        return PooledProcessor(self, name)

    @asynccontextmanager
    async def reserved(self, name: str, memory: int | None) -> AsyncIterator[Processor]:
        """Yield a process with the processor loaded, for one step. Raises StepFailure, OSError."""
        await self._slots.acquire()
        process: _StepProcess | None = None
        try:
            process = await self._ready(name)
            limit = memory or self._memory

            async def perform(
                subject: StepInput, bench: StepContext, options: dict[str, Any]
            ) -> dict[str, Any]:
                assert process is not None
                return await process.perform(name, subject, bench, options, limit)

            await process.load(name)
            yield perform
        finally:
            if process is not None and process.reusable:
                self._keep(process)
                self._slots.release()
            elif process is not None:
                self._end(process).add_done_callback(lambda _: self._slots.release())
            else:
                self._slots.release()

    async def _ready(self, name: str) -> _StepProcess:
        """Return a free process, preferably with the processor loaded, or a new one."""
        for process in [*self._free]:
            if not process.alive:
                self._free.remove(process)
                self._end(process)
        known = [process for process in self._free if name in process.loaded]
        if free := known or self._free:
            process = free[-1]
            self._free.remove(process)
            return process
        return await shield_result(asyncio.ensure_future(_start()), self._end)

    def _keep(self, process: _StepProcess) -> None:
        self._free.append(process)
        steps = process.steps

        def end_if_idle() -> None:
            if process in self._free and process.steps == steps:
                self._free.remove(process)
                self._end(process)

        asyncio.get_running_loop().call_later(IDLE_TIMEOUT, end_if_idle)

    def _end(self, process: _StepProcess) -> asyncio.Task[None]:
        task = asyncio.create_task(process.end(), name="step-process-ends")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task


class PooledProcessor:
    """The port `ReservableProcessor` for an installed processor."""

    def __init__(self, pool: StepPool, name: str) -> None:
        self._pool = pool
        self._name = name

    def reserve(self, step: Step) -> AbstractAsyncContextManager[Processor]:
        return self._pool.reserved(self._name, step.memory)

    async def __call__(
        self, subject: StepInput, bench: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        async with self._pool.reserved(self._name, None) as perform:
            return await perform(subject, bench, options)


class _StepProcess:
    """Keeper with its child process; `reusable` while another step may run in it."""

    def __init__(self, process: Process, orders: asyncio.StreamWriter) -> None:
        self.loaded: set[str] = set()
        self.steps = 0
        self.reusable = True
        self._process = process
        self._orders = orders

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def load(self, name: str) -> None:
        """Import the processor, once. Raises StepFailure."""
        if name in self.loaded:
            return
        self.reusable = False
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                await self._send(step_messages.Load(name))
                while not isinstance(
                    report := await self._receive(), step_messages.Loaded | step_messages.Failed
                ):
                    pass  # a late word about the step before
        except TimeoutError:
            text = f"the processor {name!r} was not imported within {LOAD_TIMEOUT:g} s"
            raise StepFailure(StepError("ProcessorNotLoaded", text)) from None
        if isinstance(report, step_messages.Failed):
            text = f"{report.error.error_type}: {report.error.message}"
            raise StepFailure(StepError("ProcessorNotLoaded", text))
        self.loaded.add(name)
        self.reusable = True

    async def perform(
        self,
        name: str,
        subject: StepInput,
        bench: StepContext,
        options: dict[str, Any],
        memory: int,
    ) -> dict[str, Any]:
        """Run one step. Raises StepFailure for its error, or for the end of the process."""
        self.reusable = False
        self.steps += 1
        readers: dict[int, AsyncIterator[bytes]] = {}
        try:
            await self._send(step_messages.Perform(name, subject, options, memory))
            while True:
                match await self._receive():
                    case step_messages.Finished(result, clean):
                        self._done(clean)
                        return _result(result)
                    case step_messages.Failed(error, clean):
                        self._done(clean)
                        raise StepFailure(error)
                    case step_messages.Read() as read:
                        await self._send(await _read(bench, readers, read))
                    case step_messages.CloseReader(reader):
                        await _close(readers.pop(reader, None))
                    case step_messages.ProgressMade(done, total):
                        await bench.progress(done, total)
                    case step_messages.Attach(attached, content):
                        await self._send(await _attach(bench, attached, content))
                    case step_messages.Loaded():
                        pass
        finally:
            for chunks in readers.values():
                await _close(chunks)

    async def end(self) -> None:
        """End the process with everything below it."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(KILL_TIMEOUT):
                await self._gone()
                return
        except TimeoutError:
            _log.warning("step_process_killed", pid=self._process.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT):
                await self._gone()

    async def _gone(self) -> None:
        assert self._process.stdout is not None
        self._orders.close()
        while await self._process.stdout.read(STREAM_BUFFER_BYTES):
            pass  # the end of the process shows only once its output was read
        await self._process.wait()

    def _done(self, clean: bool) -> None:
        self.reusable = clean and self.steps < MAX_STEPS_PER_PROCESS

    async def _send(self, message: step_messages.StepMessage) -> None:
        try:
            self._orders.write(step_messages.frame(message))
            await self._orders.drain()
        except (OSError, RuntimeError):  # the latter is uvloop's word for a closed pipe
            raise await self._lost() from None

    async def _receive(self) -> step_messages.Report:
        assert self._process.stdout is not None
        try:
            length = int.from_bytes(
                await self._process.stdout.readexactly(step_messages.LENGTH_BYTES), "big"
            )
            if length > step_messages.MAX_FRAME_BYTES:
                raise _unreadable()
            report: step_messages.Report = step_messages.decode_report(
                await self._process.stdout.readexactly(length)
            )
            return report
        except (OSError, asyncio.IncompleteReadError):
            raise await self._lost() from None
        except msgspec.MsgspecError:
            raise _unreadable() from None

    async def _lost(self) -> StepFailure:
        """Return the error of a step whose process has exited, or has closed its pipe."""
        text = "closed its connection to the worker"
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_TIMEOUT):
                text = _ending(await self._process.wait())
        return StepFailure(StepError("StepProcessDied", f"the process of the step {text}"))


def installed_problems(steps: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return problems with installed processors or their options; "" if there are none.

    Judged in a process of its own, since that imports the packages.
    """
    command = [*_command(), "--check"]
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(steps),
            stdout=subprocess.PIPE,
            timeout=CHECK_TIMEOUT,
            env=_environment(),
            start_new_session=True,
            check=False,
        )
        return msgspec.json.decode(done.stdout, type=list[str])
    except subprocess.TimeoutExpired:
        return [f"the processor was not imported within {CHECK_TIMEOUT:g} s"] * len(steps)
    except msgspec.MsgspecError:
        ended = _ending(done.returncode)
        text = f"the processor cannot be loaded: the process that imports it {ended}"
        return [text] * len(steps)


async def _start() -> _StepProcess:
    # Not stdin=PIPE: that is a socket pair, too, but one whose transport cannot receive. uvloop
    # reports "Fatal error on transport" with a stack trace once a step writes to its end of it.
    # What a step writes there is received and ignored; the stream's limit bounds it.
    ours, theirs = socket.socketpair()
    with theirs:
        _, orders = await asyncio.open_unix_connection(sock=ours)
        try:
            process = await asyncio.create_subprocess_exec(
                *_command(),
                stdin=theirs.fileno(),
                stdout=PIPE,
                limit=STREAM_BUFFER_BYTES,
                start_new_session=True,  # Ctrl-C is for the worker, which ends its steps itself
                env=_environment(),
            )
        except BaseException:
            orders.close()
            raise
    return _StepProcess(process, orders)


def _command() -> tuple[str, ...]:
    """Isolated, so that only our own module search path counts, which is the argument."""
    return sys.executable, "-I", str(_KEEPER), json.dumps([os.path.abspath(p) for p in sys.path])


def _environment() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name not in _NOT_FOR_STEPS}


async def _read(
    bench: StepContext, readers: dict[int, AsyncIterator[bytes]], read: step_messages.Read
) -> step_messages.StepMessage:
    try:
        chunks = readers.get(read.reader)
        if chunks is None:
            if len(readers) >= MAX_READERS:
                raise RuntimeError(f"a step reads its file at most {MAX_READERS} times at once")
            chunks = readers[read.reader] = bench.read(read.start, read.end)
        async for chunk in chunks:
            return step_messages.Chunk(chunk)
        del readers[read.reader]
        return step_messages.Chunk(None)
    except Exception as error:
        await _close(readers.pop(read.reader, None))
        return step_messages.RequestFailed(describe_error(error))


async def _attach(bench: StepContext, name: str, content: bytes) -> step_messages.StepMessage:
    try:
        await bench.attach(name, content)
    except Exception as error:
        return step_messages.RequestFailed(describe_error(error))
    return step_messages.Attached()


async def _close(chunks: AsyncIterator[bytes] | None) -> None:
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


def _result(encoded: bytes) -> dict[str, Any]:
    try:
        if len(encoded) > MAX_RESULT_BYTES:
            raise _unreadable()
        return msgspec.json.decode(encoded, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise _unreadable() from None


def _unreadable() -> StepFailure:
    text = "the process of the step wrote something of its own on the connection to the worker"
    return StepFailure(StepError("StepProcessDied", text))


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL":
        return "was killed by SIGKILL, as the kernel does when memory runs out"
    return f"was killed by {name}"
