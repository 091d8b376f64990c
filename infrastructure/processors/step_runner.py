"""Child process that runs steps of installed packages for a worker, one at a time.

A processor is an async function, or a plain one that may block: this process has nothing else to
do. Whatever it raises is reported; whatever it leaves behind (threads, tasks, processes, alarms)
makes the process unfit for another step, and the worker replaces it.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import inspect
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import msgspec

from application.pipeline import PermanentError
from application.worker.step_result import (
    MAX_ARTIFACT_BYTES,
    ErrorKind,
    StepError,
    StepFailure,
    describe_error,
    encode_result,
)
from infrastructure.processors import step_messages
from infrastructure.processors.options import BadOption, parse_options

GROUP = "uptrail.processors"
PROGRESS_INTERVAL = 0.05  # seconds between two reports of progress to the worker
THREAD_EXIT_TIMEOUT = 0.5  # seconds in which the threads of a step that is over may end


def serve(inbound: int, outbound: int, keeper: int) -> None:
    """Carry out orders until the worker closes its end."""
    runner = _Runner(_Channel(inbound, outbound), keeper)
    while (order := runner.channel.next_order()) is not None:
        runner.channel.send(runner.carry_out(order))


def check(outbound: int) -> NoReturn:
    """Check options of installed processors: standard input has `[[name, options], ...]`.

    Answers a list with a problem, or an empty text, for each.
    """
    problems = [_problem(name, options) for name, options in msgspec.json.decode(sys.stdin.read())]
    os.write(outbound, msgspec.json.encode(problems))
    os._exit(0)


def _problem(name: str, options: dict[str, Any]) -> str:
    try:
        kind = getattr(_load(name), "options", None)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            parse_options(kind, options)
    except BadOption as error:
        return str(error)
    except BaseException as error:
        found = describe_error(error)
        return f"the processor cannot be loaded: {found.error_type}: {found.message}"
    return ""


def _load(name: str) -> Any:
    found = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if not found:
        raise LookupError(f"no installed package offers a processor {name!r}")
    return found[-1].load()


class _Channel:
    """Blocking frames to and from the worker; for this process alone, not for one it forks."""

    def __init__(self, inbound: int, outbound: int) -> None:
        self._inbound = inbound
        self._outbound = outbound
        self._pid = os.getpid()
        self._exchanging = threading.RLock()
        self._readers = itertools.count(1)

    def new_reader(self) -> int:
        """Return a number that no reader has had: an abandoned reader may be closed late."""
        return next(self._readers)

    def next_order(self) -> step_messages.Order | None:
        order = self._receive()
        assert order is None or isinstance(order, step_messages.Load | step_messages.Perform)
        return order

    def send(self, message: step_messages.StepMessage) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("a workbench is of no use in a process that the processor started")
        rest = memoryview(step_messages.frame(message))
        with self._exchanging:
            while rest:
                rest = rest[os.write(self._outbound, rest) :]

    def call(self, message: step_messages.StepMessage) -> step_messages.Reply:
        """Send, and wait for the response. Raises StepFailure for an error of the worker."""
        with self._exchanging:
            self.send(message)
            reply = self._receive()
        if reply is None:
            raise EOFError("the worker is gone")
        assert not isinstance(reply, step_messages.Load | step_messages.Perform)
        if isinstance(reply, step_messages.RequestFailed):
            raise _failure(reply.error)
        return reply

    def _receive(self) -> step_messages.Order | step_messages.Reply | None:
        head = self._exactly(step_messages.LENGTH_BYTES)
        if head is None:
            return None
        body = self._exactly(int.from_bytes(head, "big"))
        return None if body is None else step_messages.decode_order(body)

    def _exactly(self, size: int) -> bytes | None:
        content = bytearray()
        while len(content) < size:
            chunk = os.read(self._inbound, min(size - len(content), 1 << 20))
            if not chunk:
                return None
            content += chunk
        return bytes(content)


class _PermanentFailure(StepFailure, PermanentError):
    """Raised for an error of the worker that a retry would not resolve."""


def _failure(error: StepError) -> StepFailure:
    return (_PermanentFailure if error.kind is ErrorKind.PERMANENT else StepFailure)(error)


class _Bench:
    """Base of both workbenches: blocking requests to the worker."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._unsent: step_messages.ProgressMade | None = None
        self._sent_at = 0.0

    def chunks(self, start: int, end: int | None) -> Generator[bytes, None, None]:
        reader, ended = self._channel.new_reader(), False
        try:
            while True:
                reply = self._channel.call(step_messages.Read(reader, start, end))
                assert isinstance(reply, step_messages.Chunk)
                if reply.data is None:
                    ended = True
                    return
                yield reply.data
        finally:
            if not ended:
                self._channel.send(step_messages.CloseReader(reader))

    def report(self, done: int, total: int | None) -> None:
        if done < 0 or (total is not None and done > total):
            raise ValueError(f"{done} of {total} is not progress")
        self._unsent = step_messages.ProgressMade(int(done), None if total is None else int(total))
        if time.monotonic() - self._sent_at >= PROGRESS_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Report the last progress that has not been reported."""
        if self._unsent is not None:
            unsent, self._unsent = self._unsent, None
            self._channel.send(unsent)
            self._sent_at = time.monotonic()

    def keep(self, name: str, content: bytes) -> None:
        if len(content) > MAX_ARTIFACT_BYTES:
            raise PermanentError(f"artifact {name!r} is larger than {MAX_ARTIFACT_BYTES} bytes")
        self._channel.call(step_messages.Attach(str(name), bytes(content)))


class _AsyncBench(_Bench):
    """The port `Workbench`. It blocks this process's event loop, in which there is but the step."""

    def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return _Chunks(self.chunks(start, end))

    async def progress(self, done: int, total: int | None = None) -> None:
        self.report(done, total)

    async def attach(self, name: str, content: bytes) -> None:
        self.keep(name, content)


class _PlainBench(_Bench):
    """Workbench for synchronous functions: results may be used directly or awaited."""

    def read(self, start: int = 0, end: int | None = None) -> _Chunks:
        return _Chunks(self.chunks(start, end))

    def progress(self, done: int, total: int | None = None) -> _Done:
        self.report(done, total)
        return _Done()

    def attach(self, name: str, content: bytes) -> _Done:
        self.keep(name, content)
        return _Done()


class _Chunks:
    """Chunks of bytes, for `for` and for `async for`.

    No async generator: one that is left half way has the event loop make a task to close it.
    """

    def __init__(self, chunks: Generator[bytes, None, None]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._chunks.close()


class _Done:
    """Awaitable of a value that is already available."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


class _Runner:
    """Loads processors, and runs one step after another in one event loop."""

    def __init__(self, channel: _Channel, keeper: int) -> None:
        self.channel = channel
        self._keeper = keeper
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loaded: dict[str, Any] = {}
        self._threads: frozenset[threading.Thread] = frozenset()

    def carry_out(self, order: step_messages.Order) -> step_messages.StepMessage:
        if isinstance(order, step_messages.Load):
            return self._load(order.name)
        bench = (_AsyncBench if _is_async(self._loaded[order.name]) else _PlainBench)(self.channel)
        try:
            with _memory(order.memory):
                ended = self._outcome(order, bench)
        except BaseException:  # even to describe the error took more memory than there is
            ended = _out_of_memory(order.memory)
        if os.getpid() != self._pid:
            os._exit(0)  # a child that the processor forked, and let return
        with suppress(BaseException):
            sys.stdout.flush()
        try:
            clean = self._is_clean(order.memory)
        except Exception:  # such as a step that has left no file descriptor free
            clean = False
        bench.flush()
        return (
            step_messages.Failed(ended, clean)
            if isinstance(ended, StepError)
            else step_messages.Finished(ended, clean)
        )

    def _outcome(self, order: step_messages.Perform, bench: _Bench) -> bytes | StepError:
        """The result as JSON, or the error, described while memory is limited."""
        try:
            return encode_result(self._run(order, bench))
        except MemoryError:
            return _out_of_memory(order.memory)
        except BaseException as error:
            return describe_error(error)

    def _load(self, name: str) -> step_messages.StepMessage:
        try:
            asyncio.set_event_loop(self._loop)
            self._loaded[name] = _load(name)
        except BaseException as error:
            return step_messages.Failed(describe_error(error), clean=False)
        self._threads = frozenset(threading.enumerate())  # those of an import are there to stay
        return step_messages.Loaded()

    def _run(self, order: step_messages.Perform, bench: _Bench) -> Any:
        processor = self._loaded[order.name]
        asyncio.set_event_loop(self._loop)
        threads = ThreadPoolExecutor(thread_name_prefix="step")
        self._loop.set_default_executor(threads)
        try:
            found = processor(order.subject, bench, order.options)
            return self._awaited(found) if inspect.isawaitable(found) else found
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _awaited(self, performing: Any) -> Any:
        async def perform() -> Any:
            return await performing

        task = self._loop.create_task(perform())
        # Until then SIGTERM ends the process, as it does while a plain function runs.
        self._loop.add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return self._loop.run_until_complete(task)
        finally:
            self._loop.remove_signal_handler(signal.SIGTERM)

    def _is_clean(self, memory: int) -> bool:
        """Return whether the step left nothing behind that could affect the next step."""
        pending = [task for task in asyncio.all_tasks(self._loop) if not task.done()]
        return not (
            pending
            or self._has_threads()
            or _has_children(self._pid, self._keeper)
            or _has_alarm()
            or _peak() > memory // 2
        )

    def _has_threads(self) -> bool:
        deadline = time.monotonic() + THREAD_EXIT_TIMEOUT
        for thread in frozenset(threading.enumerate()) - self._threads:
            with suppress(RuntimeError):
                thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return True
        return False


def _is_async(processor: Any) -> bool:
    while isinstance(processor, functools.partial):
        processor = processor.func
    with suppress(ValueError):
        processor = inspect.unwrap(processor)
    call = getattr(type(processor), "__call__", None)  # noqa: B004 - the method is wanted
    return inspect.iscoroutinefunction(processor) or inspect.iscoroutinefunction(call)


def _out_of_memory(limit: int) -> StepError:
    return StepError("MemoryError", f"the step needs more than {limit} bytes of memory")


@contextmanager
def _memory(limit: int) -> Iterator[None]:
    """Limit what this process may allocate, in bytes, where the system can."""
    try:
        import resource
    except ImportError:
        yield
        return
    # Not the address space, of which libraries reserve far more than they use. Linux counts
    # private mappings into this limit as well, so that it holds for large allocations.
    kind = resource.RLIMIT_DATA
    _, hard = resource.getrlimit(kind)
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (hard, hard))


def _peak() -> int:
    """Return the peak memory of this process in bytes; 0 if unknown."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _has_alarm() -> bool:
    if not hasattr(signal, "getitimer"):
        return False
    timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    return any(signal.getitimer(timer)[0] for timer in timers)


def _has_children(pid: int, keeper: int) -> bool:
    """Return whether the step left child processes; the keeper is the parent of orphans."""
    left = _children(pid)
    if keeper:
        left |= _children(keeper)
    return bool(left - {pid})


def _children(parent: int) -> set[int]:
    """Return an empty result where the kernel does not report it."""
    found: set[int] = set()
    for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):
            found.update(map(int, tasks.read_text().split()))
    return found
