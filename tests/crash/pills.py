"""A processor of an installed package that ends its process in the way its file's path names.

`installed` makes a folder out of it that Python takes for an installed package.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_METADATA = "Metadata-Version: 2.1\nName: uptrail-pills\nVersion: 1\n"
_ENTRIES = """[uptrail.processors]
pill = uptrail_pills:pill
plain = uptrail_pills:plain
reads = uptrail_pills:reads
polite = uptrail_pills:polite
missing = uptrail_nowhere:nothing
"""


def installed(folder: Path) -> Path:
    """The folder, which holds this module as a package for PYTHONPATH."""
    information = folder / "uptrail_pills-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(_METADATA)
    (information / "entry_points.txt").write_text(_ENTRIES)
    shutil.copyfile(__file__, folder / "uptrail_pills.py")
    return folder


class Unspeakable(Exception):
    """Error whose text cannot be read."""

    def __str__(self) -> str:
        raise SystemExit("no")

    __repr__ = __str__


class Shapeless(Exception):
    """Error whose `__class__` raises."""

    @property
    def __class__(self) -> Any:
        raise SystemExit("no")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise SystemExit("no")


def _exit() -> None:
    os._exit(7)


def _sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def _kill_worker() -> None:
    """The worker is the parent of the keeper."""
    with open(f"/proc/{os.getppid()}/stat", encoding="ascii") as stat:
        worker = int(stat.read().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)
    time.sleep(60)


def _memory() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(16 * 1024 * 1024))


def _system_exit() -> None:
    raise SystemExit(3)


def _keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def _generator_exit() -> None:
    raise GeneratorExit


def _cancelled() -> None:
    raise asyncio.CancelledError


def _unspeakable() -> None:
    raise Unspeakable


def _shapeless() -> None:
    raise Shapeless("shapeless")


def _long() -> None:
    raise type("T" * 100_000, (Exception,), {})("m" * 5_000_000)


def _odd_characters() -> None:
    raise ValueError("nul \0, half a pair \ud800")


def _recursion() -> None:
    _recursion()


def _sleep() -> None:
    time.sleep(3600)


def _spin() -> None:
    while True:
        pass


def _hold_the_gil() -> None:
    ctypes.PyDLL(None).sleep(3600)


def _segfault() -> None:
    ctypes.string_at(0)


def _stack_overflow() -> None:
    sys.setrecursionlimit(10**9)
    value: Any = []
    for _ in range(10**6):
        value = [value]
    repr(value)


def _close_everything() -> None:
    os.closerange(0, 4096)


def _write_garbage() -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\0\0\0\x05hello")
        except OSError:
            continue
    time.sleep(3600)


def _fork_and_return() -> None:
    os.fork()


def _child_left() -> None:
    script = f"import time; open({os.environ['PILLS_FOLDER']!r} + '/child', 'a'); time.sleep(3600)"
    subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    raise ValueError("a child is left")


def _daemon_left_by_the_dead() -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(3600)
        os._exit(0)
    os.wait()
    os._exit(9)


def _thread_left() -> None:
    threading.Thread(target=time.sleep, args=(3600,)).start()
    raise ValueError("a thread is left")


def _alarm_left() -> None:
    signal.alarm(1)
    raise ValueError("an alarm is left")


def _descriptors() -> None:
    while True:
        _files.append(os.open(os.devnull, os.O_RDONLY))


_files: list[int] = []


def _exit_in_a_task() -> None:
    async def leave() -> None:
        raise SystemExit(4)

    _tasks.append(asyncio.get_running_loop().create_task(leave()))


_tasks: list[asyncio.Task[None]] = []


# By name: what ends the process, and the type of the error that is recorded.
PILLS: dict[str, tuple[Callable[[], None], str]] = {
    "exit": (_exit, "StepProcessDied"),
    "sigkill": (_sigkill, "StepProcessDied"),
    "kill-parent": (_kill_parent, "StepProcessDied"),
    "memory": (_memory, "MemoryError"),
    "system-exit": (_system_exit, "SystemExit"),
    "keyboard-interrupt": (_keyboard_interrupt, "KeyboardInterrupt"),
    "generator-exit": (_generator_exit, "GeneratorExit"),
    "cancelled": (_cancelled, "CancelledError"),
    "unspeakable": (_unspeakable, "Unspeakable"),
    "shapeless": (_shapeless, "SystemExit"),  # asyncio reads its __class__
    "long": (_long, "T" * 200),
    "odd-characters": (_odd_characters, "ValueError"),
    "recursion": (_recursion, "RecursionError"),
    "sleep": (_sleep, "StepTimeout"),
    "spin": (_spin, "StepTimeout"),
    "gil": (_hold_the_gil, "StepTimeout"),
    "segfault": (_segfault, "StepProcessDied"),
    "stack-overflow": (_stack_overflow, "StepProcessDied"),
    "close-everything": (_close_everything, "StepProcessDied"),
    "write-garbage": (_write_garbage, "StepProcessDied"),
    "child-left": (_child_left, "ValueError"),
    "daemon-left": (_daemon_left_by_the_dead, "StepProcessDied"),
    "thread-left": (_thread_left, "ValueError"),
    "alarm-left": (_alarm_left, "ValueError"),
    "descriptors": (_descriptors, "OSError"),
    "exit-in-a-task": (_exit_in_a_task, "SystemExit"),
}
DEADLY: dict[str, Callable[[], None]] = {"kill-worker": _kill_worker}
"""Files that end the worker itself, from another process of the same user."""
HARMLESS: dict[str, Callable[[], None]] = {"fork": _fork_and_return}
"""Files with unusual behaviour that must have no effect."""


async def pill(subject: Any, bench: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Run the fault that the path names; process any other file."""
    name = subject.path.partition(".")[0]
    if name in PILLS:
        PILLS[name][0]()
        await asyncio.sleep(1)
        return {}
    if act := (HARMLESS | DEADLY).get(name):
        act()
    size = 0
    async for chunk in bench.read():
        size += len(chunk)
        await bench.progress(size, subject.size)
    await bench.attach("size.txt", str(size).encode())
    return {"size": size}


def plain(subject: Any, bench: Any, options: dict[str, Any]) -> dict[str, Any]:
    """A plain function, which may block."""
    size = 0
    for chunk in bench.read():
        size += len(chunk)
        bench.progress(size, subject.size)
        time.sleep(0.001)
    bench.attach("size.txt", str(size).encode())
    return {"size": size}


async def reads(subject: Any, bench: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Readers that are left half way, read side by side, and are refused."""
    first = b""
    async for chunk in bench.read(3):
        first = chunk
        break
    pair = [bench.read(0, 4), bench.read(4, 8)]
    both = [[chunk async for chunk in one] for one in pair]
    refusals = []
    for name in ("Not A Name", "once.txt", "once.txt"):
        try:
            await bench.attach(name, b"x")
        except Exception as error:
            refusals.append(str(error))
    parts = [b"".join(chunks).decode() for chunks in both]
    return {"first": first.decode(), "parts": parts, "refusals": refusals, "pid": os.getpid()}


async def polite(subject: Any, bench: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Wait, and clean up when cancelled."""
    folder = Path(os.environ["PILLS_FOLDER"])
    (folder / "began").write_text(str(os.getpid()))
    try:
        await asyncio.sleep(3600)
    finally:
        (folder / "cleaned").touch()
    return {}
