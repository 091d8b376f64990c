"""
Errors of the domain.

* CommandRejected
  + InvalidState        the aggregate is in the wrong state for the command
  + OutOfRange          a byte count went backwards or past the end
  + StaleAttempt        another attempt holds the upload, or none does
  + ValidationFailed    the input breaks a rule; every FieldError names its field
"""

from __future__ import annotations

import msgspec


class CommandRejected(Exception):
    """The domain rejected a command; nothing was recorded."""


class InvalidState(CommandRejected):
    """The aggregate is in the wrong state for the command."""


class OutOfRange(CommandRejected):
    """A byte count went backwards or past the end of the file."""


class StaleAttempt(CommandRejected):
    """A fenced-off write: its attempt is not the open one (a zombie worker, a late message)."""


class FieldError(msgspec.Struct, frozen=True):
    """One broken rule: the field it is in (a path such as `files/3/size`) and what to do."""

    field: str
    message: str


class ValidationFailed(CommandRejected):
    """The input breaks one rule or more; nothing was recorded."""

    def __init__(self, *faults: FieldError) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        self.faults = faults
