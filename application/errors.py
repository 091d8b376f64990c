"""
Everything a use case can answer besides success.

* ApplicationError
  + NotFound          there is no such thing, or it belongs to somebody else
  + Conflict          a stream moved on since the writer read it
  + AlreadyHandled    the command id was answered before; carries that answer
  + KeyReused         the command id was used before for another request
  + Busy              the same stream moved on too often; try again
  + Unavailable       the log or the store cannot be reached now; nothing was recorded
  + Undetermined      the log was lost while it recorded; whether it did is not known
  + StorageFull       there is no room for the bytes
"""

from __future__ import annotations

from uuid import UUID


class ApplicationError(Exception):
    """A use case could not do what was asked."""


class NotFound(ApplicationError):
    """There is no such thing, or it belongs to somebody else."""


class Conflict(ApplicationError):
    """A stream moved on since the writer read it."""

    def __init__(self, stream: UUID, expected: int | None, actual: int) -> None:
        super().__init__(f"stream {stream} is at version {actual}, not {expected}")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class AlreadyHandled(ApplicationError):
    """The command id was answered before; `body` is that answer.

    `position` is that of the last event it recorded, 0 where it recorded none, None while that is
    not known: the first request is being recorded at this moment.
    """

    def __init__(self, body: bytes, position: int | None) -> None:
        super().__init__("the command was handled before")
        self.body = body
        self.position = position


class KeyReused(ApplicationError):
    """The idempotency key was used before for another request."""


class Busy(ApplicationError):
    """The same stream moved on too often; the command may be sent again."""


class Unavailable(ApplicationError):
    """The log or the store cannot be reached now; nothing was recorded."""


class Undetermined(ApplicationError):
    """The log was lost while it recorded, for too long to find out whether it did."""


class StorageFull(ApplicationError):
    """There is no room for the bytes; `free` is how many more may be stored, if known."""

    def __init__(self, message: str, free: int | None = None) -> None:
        super().__init__(message)
        self.free = free
