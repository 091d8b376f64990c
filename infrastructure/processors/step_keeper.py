"""Supervisor process of one step runner: starts it as a child and cleans up after it.

Called with the module search path of the worker, as JSON. The child runs code of installed
packages, which may end it in any way. The keeper survives that, kills whatever the code left
running, and ends as the child did: by the same signal or exit code. It also ends the child
on SIGTERM and when the worker has died, which closes standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

TERMINATION_GRACE = 0.5  # seconds in which a cancelled step may clean up
CLEANUP_TIMEOUT = 5.0  # seconds in which everything a step has left running is killed
POLL_INTERVAL = (
    0.2  # seconds between two looks, where the kernel cannot wait for both child and worker
)
OOM_SCORE = "500"  # the kernel, short of memory, ends a step's process before the worker


class _Terminated(Exception):
    """Raised on SIGTERM, to end the child."""


def main() -> NoReturn:
    sys.path[:] = json.loads(sys.argv[1])
    if "--check" in sys.argv:
        from infrastructure.processors.step_runner import check

        check(_private_pipe())
    if not hasattr(os, "fork"):
        _run()
    _no_core_dumps()
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans of the child become children of the keeper
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: should the keeper be killed, so is the child
        if os.getppid() != keeper:
            os._exit(1)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write(OOM_SCORE)
        _run(keeper)
    _keep(child)


def _run(keeper: int = 0) -> NoReturn:
    # What a processor prints goes to the log; the pipes to the worker have other numbers.
    inbound = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    outbound = _private_pipe()
    from infrastructure.processors.step_runner import serve

    serve(inbound, outbound, keeper)
    os._exit(0)


def _private_pipe() -> int:
    """Standard output under another number; what is printed goes to standard error instead."""
    outbound = os.dup(1)
    os.dup2(2, 1)
    return outbound


def _keep(child: int) -> NoReturn:
    signal.signal(signal.SIGTERM, _terminate)
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 1)  # or the worker would not see the child's end close
        status = _ended(child, None)
    except _Terminated:
        status = None
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        status = _ended(child, TERMINATION_GRACE)
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    _kill_left(child)
    _end_as(status)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def _ended(child: int, within: float | None) -> int | None:
    """Return the child's status; None if the worker exits or the time limit passes first."""
    deadline = None if within is None else time.monotonic() + within
    poll = select.poll()
    if within is None:
        poll.register(0, 0)  # no event but the hang-up, which is always reported
    ends = _pidfd(child)
    if ends is not None:
        poll.register(ends, select.POLLIN)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return None
        if ends is None:
            left = POLL_INTERVAL if left is None else min(left, POLL_INTERVAL)
        events = poll.poll(None if left is None else left * 1000)
        if any(descriptor == 0 for descriptor, _ in events):
            return None


def _pidfd(child: int) -> int | None:
    try:
        return os.pidfd_open(child)
    except (AttributeError, OSError):
        return None


def _kill_left(child: int) -> None:
    """Kill all descendants of the child: as subreaper the keeper is their parent now."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    deadline = time.monotonic() + CLEANUP_TIMEOUT
    while time.monotonic() < deadline:
        left = list(_children(os.getpid()))
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.001)


def _children(parent: int) -> Iterator[int]:
    """Return the child processes of this process; none without /proc."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            yield int(name)


def _end_as(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _no_core_dumps() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _prctl(option: int, argument: int) -> None:
    """Best effort: only Linux has it."""
    import ctypes

    from infrastructure.platform import libc_function

    if call := libc_function("prctl", ctypes.c_int, ctypes.c_ulong):
        call(option, argument)


if __name__ == "__main__":
    main()
