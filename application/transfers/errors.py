"""
Errors of transfers. Bytes received before an error are kept, unless noted.

* TransferError
  + OffsetMismatch        the client and the event log have different offsets
  + BodyTooLarge          more bytes than declared or allowed; the body is not kept
  + BodyChecksumMismatch  the body does not have its checksum; none of it is kept
  + PartialUploadMissing  a partial upload to concatenate is absent or incomplete
  + NotAcceptingBytes     the upload was received, cancelled or has expired
  + BatchFull             the batch's quota would be exceeded
  + QuotaExceeded         the owner's quota would be exceeded
  + TooManyTransfers      the owner's limit of concurrent transfers is reached
  + TransferAborted       the transfer was ended from outside
    - Preempted           a newer request for the same upload
    - IdleTimeout         the client sent no byte for too long
      * BelowMinRate      the client sent too few bytes for too long
    - Stopping            this process is shutting down
    - AccessEnded         the client's credential was revoked, or has expired
    - ClientDisconnected  the connection broke, or the body was malformed
"""

from __future__ import annotations

from uuid import UUID

from application.errors import ApplicationError
from domain.upload.state import UploadState


class TransferError(ApplicationError):
    """Base class of the errors of transfers."""


class OffsetMismatch(TransferError):
    """The client's offset (`claimed`) differs from the recorded one (`offset`)."""

    def __init__(self, offset: int, claimed: int) -> None:
        super().__init__(f"the upload stands at offset {offset}, not {claimed}")
        self.offset = offset
        self.claimed = claimed


class BodyTooLarge(TransferError):
    """The body has more bytes than declared or allowed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the upload may have at most {limit} bytes")
        self.limit = limit


class BodyChecksumMismatch(TransferError):
    """The body does not have the checksum that the client sent."""

    def __init__(self, algorithm: str) -> None:
        super().__init__(f"the bytes do not have the {algorithm} checksum that came with them")


class PartialUploadMissing(TransferError):
    """A partial upload to concatenate is absent, incomplete, or of another batch."""

    def __init__(self, part: UUID) -> None:
        super().__init__(f"{part} is no finished part that could be joined here")


class NotAcceptingBytes(TransferError):
    """The upload was received, was cancelled, or has expired."""

    def __init__(self, state: UploadState) -> None:
        super().__init__(f"the upload is {state} and takes no bytes")
        self.state = state


class BatchFull(TransferError):
    """The batch's quota would be exceeded; `limit` is a text such as `100 files`."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"a batch may hold at most {limit}")


class QuotaExceeded(TransferError):
    """The owner's quota would be exceeded; `limit` is a text such as `1000 bytes`."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"the quota of {limit} would be exceeded")


class TooManyTransfers(TransferError):
    """The owner's limit of concurrent transfers is reached."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"at most {limit} transfers may run at once; try again when one has ended")


class TransferAborted(TransferError):
    """The transfer was ended from outside."""


class Preempted(TransferAborted):
    """A newer request for the same upload arrived."""

    def __init__(self) -> None:
        super().__init__("a newer request took the upload over")


class IdleTimeout(TransferAborted):
    """The client sent no byte for too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no byte came for {seconds:g} seconds")


class BelowMinRate(IdleTimeout):
    """The client sent too few bytes for too long; `rate` is in bytes per second."""

    def __init__(self, rate: float) -> None:
        TransferAborted.__init__(self, f"fewer than {rate:g} bytes a second came")


class Stopping(TransferAborted):
    """This process is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class AccessEnded(TransferAborted):
    """The client's credential was revoked, or has expired."""

    def __init__(self) -> None:
        super().__init__("the key was revoked or has expired, or the session is over")


class ClientDisconnected(TransferAborted):
    """The connection broke, or the body was malformed; `__cause__` is the transport's error."""
