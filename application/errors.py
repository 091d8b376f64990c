"""
Errors of use cases.

* ApplicationError
  + NotFound              the object does not exist, or belongs to another owner
  + Conflict              a stream has moved on since the writer read it
  + AlreadyHandled        the command id was handled before; carries the recorded response
  + IdempotencyKeyReused  the command id was used before for another request
  + TooManyConflicts      every attempt met a conflict; the command may be repeated
  + Unavailable           the log or the store cannot be reached; nothing was recorded
  + OutcomeUnknown        the log was lost during an append; whether it was recorded is unknown
  + StorageFull           not enough free space for the bytes
"""

from __future__ import annotations

from uuid import UUID


class ApplicationError(Exception):
    """Base class: a use case could not be carried out."""


class NotFound(ApplicationError):
    """The object does not exist, or belongs to another owner."""


class Conflict(ApplicationError):
    """A stream has moved on since the writer read it."""

    def __init__(self, stream: UUID, expected: int | None, actual: int) -> None:
        super().__init__(f"stream {stream} is at version {actual}, not {expected}")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class AlreadyHandled(ApplicationError):
    """The command id was handled before; `body` is the recorded response.

    `position` is that of the last event the command recorded: 0 if it recorded none, None while it
    is unknown because the first request is being recorded at this moment.
    """

    def __init__(self, body: bytes, position: int | None) -> None:
        super().__init__("the command was handled before")
        self.body = body
        self.position = position


class IdempotencyKeyReused(ApplicationError):
    """The idempotency key was used before for another request."""


class TooManyConflicts(ApplicationError):
    """Every attempt to append met a conflict; the command may be repeated."""


class Unavailable(ApplicationError):
    """The log or the store cannot be reached; nothing was recorded."""


class OutcomeUnknown(ApplicationError):
    """The log was lost during an append, for too long to find out whether it was recorded."""


class StorageFull(ApplicationError):
    """Not enough free space; `free` is how many more bytes fit, if known."""

    def __init__(self, message: str, free: int | None = None) -> None:
        super().__init__(message)
        self.free = free
