"""Restrictions that a process puts on itself before it touches untrusted bytes.

Each function applies one mechanism and returns whether the kernel accepted it, so that a caller
can combine them: a decoder of files takes them all, a step that needs the network leaves some out.
All of them are inherited by children and none can be taken back. Imports the standard library only.

Sources: landlock(7), seccomp(2), prctl(2), setrlimit(2); system call numbers from the kernel's
`arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` (aarch64).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from infrastructure.platform import libc_function

if sys.platform != "win32":
    import resource

UNPRIVILEGED = 65534  # uid and gid of the user `nobody`, which owns no file of ours

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2

# Landlock: access rights by the version of the interface that introduced them.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_VERSION = 1  # flag of create_ruleset: return the version instead
_RULE_PATH_BENEATH = 1
_FILESYSTEM_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_TCP_RIGHTS = 0b11  # bind and connect, since version 4
_SCOPES = 0b11  # abstract Unix sockets and signals, since version 6
_READ_RIGHTS = 1 << 2 | 1 << 3  # read a file, list a folder
_FILE_RIGHTS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # those that a rule on a file may have

# Seccomp: see struct seccomp_data and struct sock_filter.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FLAGS_OF_FSTATAT = 0, 4, 16 + 3 * 8
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000  # calls of the x32 interface on x86-64
_AT_EMPTY_PATH = 0x1000


class _Machine(NamedTuple):
    audit: int
    allowed: tuple[int, ...]
    newfstatat: int
    answers: dict[int, int]  # what a refused call answers, where EPERM would mislead its caller


# What a decoder needs that has its file open and its code loaded: memory, time, reading and
# writing open descriptors, ending. No call that opens, creates, connects, starts or signals.
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        # read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask
        # rt_sigreturn pread64 pwrite64 readv writev sched_yield mremap madvise dup nanosleep getpid
        # exit uname fcntl gettimeofday getrusage times getuid getgid geteuid getegid sigaltstack
        # gettid futex sched_getaffinity restart_syscall clock_gettime clock_getres clock_nanosleep
        # exit_group set_robust_list getrandom membarrier rseq
        allowed=(
            *(0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 24, 25, 28, 32, 35, 39),
            *(60, 63, 72, 96, 98, 100, 102, 104, 107, 108, 131, 186, 202, 204, 219, 228, 229),
            *(230, 231, 273, 318, 324, 334),
        ),
        newfstatat=262,
        # open openat access stat lstat readlink: EACCES; ioctl: ENOTTY; clone3: ENOSYS
        answers={
            **dict.fromkeys((2, 4, 6, 21, 89, 257), errno.EACCES),
            16: errno.ENOTTY,
            435: errno.ENOSYS,
        },
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        allowed=(
            *(63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 67, 68, 65, 66, 124, 216, 233),
            *(23, 101, 172, 93, 160, 25, 169, 165, 153, 174, 176, 175, 177, 132, 178, 98, 123, 128),
            *(113, 114, 115, 94, 99, 278, 283, 293),
        ),
        newfstatat=79,
        answers={
            **dict.fromkeys((48, 56, 78), errno.EACCES),  # faccessat openat readlinkat
            29: errno.ENOTTY,
            435: errno.ENOSYS,
        },
    ),
}


class SandboxLimits(NamedTuple):
    """Resource limits; sizes in bytes, None leaves a limit as it is.

    `processes` counts those of the whole user id, so that only 0 (start none) means one thing.
    """

    memory: int | None = None
    processor_seconds: int | None = None
    file_size: int | None = None
    open_files: int | None = None
    processes: int | None = None


def apply_limits(limits: SandboxLimits) -> None:
    """Set resource limits, and none may leave a memory image of itself on disk.

    The kernel ends a process with SIGXCPU at its limit of processor time.
    """
    _limit(resource.RLIMIT_CORE, 0)
    if limits.memory is not None:
        _limit(resource.RLIMIT_AS, limits.memory)
    if limits.processor_seconds is not None:
        _limit(resource.RLIMIT_CPU, limits.processor_seconds, grace=1)
    if limits.file_size is not None:
        _limit(resource.RLIMIT_FSIZE, limits.file_size)
    if limits.open_files is not None:
        _limit(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.processes is not None:
        _limit(resource.RLIMIT_NPROC, limits.processes)


def drop_privileges() -> bool:
    """Become an unprivileged user without supplementary groups; False if this is not possible.

    A process that is not root has nothing to drop: it stays who it is, and False is returned.
    """
    if os.geteuid() != 0:
        return False
    with suppress(OSError):  # refused in some user namespaces
        os.setgroups([])
    try:
        os.setgid(UNPRIVILEGED)  # as root, these set the real, effective and saved ids
        os.setuid(UNPRIVILEGED)
    except OSError:  # no CAP_SETUID, or an id that is not mapped
        return False
    return not os.getgroups()


def forbid_new_privileges() -> bool:
    """Make set-user-id programs and file capabilities without effect; seccomp needs it, too."""
    return _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def end_with_parent() -> bool:
    """Have the kernel kill this process when its parent ends. Dropping privileges undoes it."""
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def landlock_version() -> int:
    """Return the version of the kernel's Landlock interface, 0 where there is none."""
    return max(0, _syscall(_LANDLOCK_CREATE_RULESET, 0, 0, _LANDLOCK_VERSION))


def restrict_access(
    *, readable: Iterable[str | os.PathLike[str]] = (), network: bool = False
) -> int:
    """Deny files by path, except for reading below `readable`, and TCP, with Landlock.

    Open descriptors go on working. Return the version of the interface that was used, 0 if
    nothing was denied. TCP needs version 4, signals to other processes version 6.
    """
    version = landlock_version()
    if not version or not forbid_new_privileges():
        return 0
    files = sum(rights for since, rights in _FILESYSTEM_RIGHTS.items() if since <= version)
    tcp = _TCP_RIGHTS if version >= 4 and not network else 0
    scopes = _SCOPES if version >= 6 and not network else 0
    attributes = struct.pack("=QQQ", files, tcp, scopes)
    attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = _syscall(_LANDLOCK_CREATE_RULESET, ctypes.addressof(buffer), len(attributes), 0)
    if ruleset < 0:
        return 0
    try:
        for path in readable:
            if not _allow_reading(ruleset, path):
                return 0
        return version if _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def restrict_system_calls() -> bool:
    """Allow only the system calls of a decoder with its file open and its code loaded (seccomp).

    Afterwards nothing can be opened, created, connected, started, traced or signalled. A call
    that is not allowed fails with an error; a call of a foreign architecture ends the process.
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None or not forbid_new_privileges():
        return False
    program = _filter(machine)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, their address.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    head = ctypes.create_string_buffer(header, len(header))
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(head))


def _filter(machine: _Machine) -> bytes:
    refused = _ERRNO | errno.EPERM
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, refused),
    ]
    for number in machine.allowed:
        lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, answer in machine.answers.items():
        lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | answer)]
    lines += [  # how the C library stats an open file
        (_JUMP_EQUAL, 0, 4, machine.newfstatat),
        (_LOAD, 0, 0, _FLAGS_OF_FSTATAT),
        (_JUMP_EQUAL, 0, 1, _AT_EMPTY_PATH),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EACCES),
        (_RETURN, 0, 0, refused),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _allow_reading(ruleset: int, path: str | os.PathLike[str]) -> bool:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        rights = _READ_RIGHTS if os.path.isdir(path) else _READ_RIGHTS & _FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, beneath), 12)
        address = ctypes.addressof(rule)
        return _syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, address, 0) == 0
    finally:
        os.close(beneath)


def _limit(kind: int, value: int, grace: int = 0) -> None:
    """Set a limit, no higher than the one that is in force."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
        grace = min(grace, hard - value)
    resource.setrlimit(kind, (value, value + grace))


_LONGS = (ctypes.c_long,) * 5
_c_prctl = libc_function("prctl", ctypes.c_int, *_LONGS[:4]) if sys.platform == "linux" else None
_c_syscall = libc_function("syscall", *_LONGS) if sys.platform == "linux" else None


def _prctl(option: int, value: int, third: int = 0) -> bool:
    return _c_prctl is not None and _c_prctl(option, value, third, 0, 0) == 0


def _syscall(number: int, *values: int) -> int:
    """Return what the system call returns; a negative number where there is no such call."""
    if _c_syscall is None:
        return -1
    return _c_syscall(number, *values, *(0,) * (4 - len(values)))
