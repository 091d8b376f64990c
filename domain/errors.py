"""
Everything the domain can refuse.

* Refused
  + NotNow         the aggregate is in the wrong state for the command
  + OutOfRange     a byte count went backwards or past the end
  + Superseded     another attempt holds the upload, or none does
  + Faulty         the input breaks a rule; every fault names its field
"""

from __future__ import annotations

import msgspec


class Refused(Exception):
    """A command that the current state does not allow."""


class NotNow(Refused):
    """The aggregate is in the wrong state for the command."""


class OutOfRange(Refused):
    """A byte count went backwards or past the end of the file."""


class Superseded(Refused):
    """The attempt that speaks is not the one that is open: a zombie, or a late message."""


class Fault(msgspec.Struct, frozen=True):
    """One broken rule: the field it is in (a path such as `files/3/size`) and what to do."""

    field: str
    message: str


class Faulty(Refused):
    """Input that breaks one rule or more; nothing was recorded."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        self.faults = faults
