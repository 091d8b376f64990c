"""
How a transfer can end other than well. What arrived before is kept, unless it says otherwise.

* TransferError
  + OffsetMismatch   the sender and the log disagree about how far the upload is
  + TooLong          more bytes than were declared, or than are allowed; the excess is not kept
  + ChecksumMismatch the bytes are not those the sender meant; none of the body is kept
  + PartMissing      a part that is to be joined is not there, or not all of it
  + NotIncoming      the upload takes no bytes any more: received, cancelled, expired
  + BatchFull        the batch may not hold as much
  + QuotaExceeded    the owner may not keep as much
  + TooManyTransfers the owner has as many bodies on their way as are allowed at once
  + Ended            the transfer was ended from outside
    - Overtaken      a newer request wants the same upload
    - Stalled        the sender was silent for too long
      * TooSlow      the sender brought too little in a long time
    - Stopping       this process is shutting down
    - AccessEnded    the sender's credential was revoked, or has expired
    - SenderGone     the connection broke, or the body was malformed
"""

from __future__ import annotations

from uuid import UUID

from application.errors import ApplicationError
from domain.upload.state import UploadState


class TransferError(ApplicationError):
    """A transfer did not end well."""


class OffsetMismatch(TransferError):
    """The sender and the log disagree; `offset` is what the log says, `claimed` what the other."""

    def __init__(self, offset: int, claimed: int) -> None:
        super().__init__(f"the upload stands at offset {offset}, not {claimed}")
        self.offset = offset
        self.claimed = claimed


class BodyTooLarge(TransferError):
    """More bytes than were declared, or than are allowed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the upload may have at most {limit} bytes")
        self.limit = limit


class ChecksumMismatch(TransferError):
    """The bytes are not those the sender meant."""

    def __init__(self, algorithm: str) -> None:
        super().__init__(f"the bytes do not have the {algorithm} checksum that came with them")


class PartialUploadMissing(TransferError):
    """A part that is to be joined is not there, not all of it, or not for this batch."""

    def __init__(self, part: UUID) -> None:
        super().__init__(f"{part} is no finished part that could be joined here")


class NotAcceptingBytes(TransferError):
    """The upload takes no bytes any more."""

    def __init__(self, state: UploadState) -> None:
        super().__init__(f"the upload is {state} and takes no bytes")
        self.state = state


class BatchFull(TransferError):
    """The batch may not hold as much; `limit` says what, such as `100 files`."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"a batch may hold at most {limit}")


class QuotaExceeded(TransferError):
    """The owner may not keep as much; `limit` says what, such as `1000 bytes`."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"the quota of {limit} would be exceeded")


class TooManyTransfers(TransferError):
    """The owner has as many bodies on their way as are allowed at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"at most {limit} transfers may run at once; try again when one has ended")


class TransferInterrupted(TransferError):
    """The transfer was ended from outside."""


class Preempted(TransferInterrupted):
    """A newer request wants the same upload."""

    def __init__(self) -> None:
        super().__init__("a newer request took the upload over")


class IdleTimeout(TransferInterrupted):
    """The sender was silent for too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no byte came for {seconds:g} seconds")


class BelowMinRate(IdleTimeout):
    """The sender brought too little in a long time; `rate` is in bytes a second."""

    def __init__(self, rate: float) -> None:
        TransferInterrupted.__init__(self, f"fewer than {rate:g} bytes a second came")


class Stopping(TransferInterrupted):
    """This process is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class AccessEnded(TransferInterrupted):
    """The sender's credential was revoked, or has expired."""

    def __init__(self) -> None:
        super().__init__("the key was revoked or has expired, or the session is over")


class ClientDisconnected(TransferInterrupted):
    """The connection broke, or the body was malformed; `__cause__` is the transport's error."""
