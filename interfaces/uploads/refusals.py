"""How the end of a transfer is told to an upload client.

Clients repeat a request after 409, 423 and 5xx, and give up after any other 4xx, 408 and 429
included (tus-js-client, `shouldRetry` in lib/upload.js): so where a repetition helps it is one of
these statuses.
"""

from __future__ import annotations

from application.transfer.errors import (
    BatchFull,
    ChecksumMismatch,
    NotIncoming,
    OffsetMismatch,
    Overtaken,
    PartMissing,
    QuotaExceeded,
    SenderGone,
    Stalled,
    Stopping,
    TooLong,
    TooManyTransfers,
)
from domain.errors import CommandRejected, ValidationFailed
from domain.upload.state import GONE, UploadState
from interfaces.rest.problems import RETRY_SOON, Problem, problem_of


def refusal_of(error: Exception) -> Problem:
    """The problem for an upload client."""
    match error:
        case OffsetMismatch(offset=offset):
            return Problem(
                409, "offset_mismatch", str(error), headers={"Upload-Offset": str(offset)}
            )
        case TooLong(limit=limit):
            return Problem(413, "too_large", str(error), headers={"Tus-Max-Size": str(limit)})
        case ChecksumMismatch():  # the status that tus has for it
            return Problem(460, "checksum_mismatch", str(error), title="Checksum Mismatch")
        case PartMissing():
            return Problem(400, "part_missing", str(error))
        case NotIncoming(state=state):
            return gone(state) if state in GONE else Problem(403, "invalid_state", str(error))
        case BatchFull():
            return Problem(413, "batch_full", str(error))
        case QuotaExceeded():
            return Problem(507, "quota_exceeded", str(error))
        case TooManyTransfers():
            return Problem(503, "too_many_transfers", str(error), headers=RETRY_SOON)
        case Overtaken():
            return Problem(423, "overtaken", str(error), headers=RETRY_SOON)
        case Stalled():
            return Problem(503, "stalled", str(error), headers=RETRY_SOON)
        case Stopping():
            return Problem(503, "stopping", str(error), headers=RETRY_SOON)
        case SenderGone():  # as a rule nobody reads this
            return Problem(400, "body_cut_short", str(error))
        case CommandRejected() if not isinstance(error, ValidationFailed):
            return Problem(403, "invalid_state", str(error))
    return problem_of(error)


def gone(state: UploadState) -> Problem:
    return Problem(410, "gone", f"the upload is {state}")
