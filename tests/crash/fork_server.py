"""Server that forks a process for every order; most of them are killed at a chosen await.

Run as a program it reads orders and writes reports, one JSON object a line. A fork takes a few
milliseconds where a new interpreter takes a second, and is a process all the same: killed, it
leaves what the kernel leaves, and stopped, it can go on as a zombie.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

ROOT = Path(__file__).parents[2]
LONGEST = 100.0  # seconds after which a process that does not end has hung

KILLED, STOPPED, DONE, FAILED = "killed", "stopped", "done", "failed"


class ProcessOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The role of a process and the await at which it ends; with `wake`, the one to continue."""

    role: str = ""
    url: str = ""
    folder: str = ""
    options: dict[str, Any] = {}
    ends_at: int | None = None
    stands_still: bool = False
    wake: int | None = None


class ProcessReport(msgspec.Struct, frozen=True, kw_only=True):
    """End of a process: killed at its await, stopped there, done before it, or failed.

    `awaits` is known of those that were done, and so is what they `answered`.
    """

    pid: int
    ended: str
    awaits: int = 0
    answered: str = ""


class ForkServer:
    """Client of the fork server. Use as a context manager."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._program: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._program = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.fork_server"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._program is not None
        self._program.communicate()

    def run(self, order: ProcessOrder) -> ProcessReport:
        """Wait until the process has ended or is stopped. Raises AssertionError if it failed."""
        assert self._program is not None
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(msgspec.json.encode(order) + b"\n")
        self._program.stdin.flush()
        report = msgspec.json.decode(self._program.stdout.readline(), type=ProcessReport)
        assert report.ended != FAILED, f"{order.role} failed:\n{self._log.read_text()[-6000:]}"
        return report


def _serve() -> None:
    """Fork a child for each order. Children write to the log, and their reports to a pipe."""
    from tests.crash import roles

    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    gc.collect()
    gc.freeze()  # a collection would copy the pages that the children share
    pipes: dict[int, int] = {}
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=ProcessOrder)
        if order.wake is not None:
            pid = order.wake
            os.kill(pid, signal.SIGCONT)
        else:
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _run_child(order, roles.ROLES[order.role], writing)
            os.close(writing)
            pipes[pid] = reading
        reports.write(msgspec.json.encode(_await_end(pid, pipes)) + b"\n")
    for pid in pipes:  # stopped processes that no order continued
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _await_end(pid: int, pipes: dict[int, int]) -> ProcessReport:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return ProcessReport(pid=pid, ended=STOPPED)
    with open(pipes.pop(pid), "rb") as pipe:
        output = pipe.read()
    if os.WIFSIGNALED(status):
        killed = os.WTERMSIG(status) == signal.SIGKILL
        return ProcessReport(pid=pid, ended=KILLED if killed else FAILED)
    return (
        msgspec.json.decode(output, type=ProcessReport)
        if output
        else ProcessReport(pid=pid, ended=FAILED)
    )


def _run_child(order: ProcessOrder, role: Any, pipe: int) -> None:
    """Run the role and exit."""
    from tests.crash.kill_at_await import AwaitKiller

    faulthandler.dump_traceback_later(LONGEST, exit=True)
    killer = AwaitKiller(order.ends_at, stands_still=order.stands_still)
    try:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(killer.task)
        answered = loop.run_until_complete(role(order, killer))
        report = ProcessReport(
            pid=os.getpid(), ended=DONE, awaits=killer.awaits, answered=answered or ""
        )
        os.write(pipe, msgspec.json.encode(report))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    _serve()
