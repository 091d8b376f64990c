"""What a command ends with: exit codes, and errors told in one sentence with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, the same for every command (design section 13)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    FAILURES = 3  # it ran to its end, and some files failed
    CANCELLED = 4
    UNREACHABLE = 5
    INTERRUPTED = 130  # Ctrl-C, as shells number it


class CommandError(Exception):
    """A command could not do what was asked; `hint` says what to do about it."""

    code = Exit.ERROR

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CommandError):
    """The command line asks for something that makes no sense."""

    code = Exit.USAGE


class Unreachable(CommandError):
    """No server answers."""

    code = Exit.UNREACHABLE


class Interrupted(CommandError):
    """Somebody pressed Ctrl-C."""

    code = Exit.INTERRUPTED


class Refusal(CommandError):
    """The server refused, with a problem document."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: tuple[str, ...] = (),
        min_position: int | None = None,
    ) -> None:
        """`min_position` is what a read waited for that the server does not show yet."""
        super().__init__("; ".join((detail or code, *errors[:5])), _HINTS.get(code, ""))
        self.status = status
        self.problem = code
        self.min_position = min_position
        self.free: int | None = None
        """Bytes that may still be stored, where the server said so."""


class OutOfService(Refusal):
    """The server, or what stands before it, cannot answer now: 502, 503 or 504."""

    code = Exit.UNREACHABLE


@contextmanager
def one_command_error() -> Iterator[None]:
    """Raise the first CommandError of a group instead of the group.

    When the server goes away, all tasks of a group fail for the same reason. Not done with
    `except*`: before Python 3.11.4, what is raised in such a block comes out of it in a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors, others = group.split(CommandError)
        if errors is None or others is not None:
            raise
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


_HINTS = {
    "unauthenticated": "pass a key with --key or UPTRAIL_KEY",
    "scope_missing": "use a key with more rights: uptrail key create --scope operator",
    "not_found": "look for it with: uptrail batch list, webhook list or key list",
    "position_not_reached": "the server is behind with what it shows: try again in a while",
    "storage_full": "free some space on the server, then run the same command again",
    "quota_exceeded": "delete files or raise the limit, then run the same command again",
}
EXIT_OF_OUTCOME = {
    "succeeded": Exit.OK,
    "completed_with_failures": Exit.FAILURES,
    "failed": Exit.FAILURES,
    "cancelled": Exit.CANCELLED,
    "expired": Exit.CANCELLED,
}
