"""Processor time of processes, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_UTIME = 11  # of the fields after the name: utime, stime, cutime, cstime (man 5 proc_pid_stat)


def of_process(pid: int) -> float:
    """Return the seconds of the process, without its children."""
    return sum(_fields(pid)[_UTIME : _UTIME + 2]) / _TICK


def of_family(pid: int) -> float:
    """Return the seconds of the process and its children, including ended ones."""
    ticks = sum(_fields(pid)[_UTIME : _UTIME + 4])
    for child in _children(pid):
        try:
            ticks += sum(_fields(child)[_UTIME : _UTIME + 4])
        except FileNotFoundError:  # it has just ended: the next call finds it in the parent's sum
            continue
    return ticks / _TICK


def of_tree(pid: int) -> float:
    """Return the seconds of the process and all descendants, including ended ones."""
    tree, ticks = [pid], 0
    for member in tree:
        try:
            ticks += sum(_fields(member)[_UTIME : _UTIME + 4])
            tree += _children(member)
        except FileNotFoundError:
            continue
    return ticks / _TICK


def parent(pid: int) -> int:
    return int(_fields(pid)[1])


def _children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task")
    return [
        int(child)
        for thread in threads.iterdir()
        for child in (thread / "children").read_text().split()
    ]


def _fields(pid: int) -> list[int]:
    """Return the fields of /proc/PID/stat from the state on; the state is replaced by 0."""
    after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, after[1:])]
