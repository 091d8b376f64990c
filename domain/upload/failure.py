"""What went wrong in an attempt, told as it was."""

from __future__ import annotations

from datetime import datetime

import msgspec

from domain.upload.events import AttemptFailed

MAX_MESSAGE = 2000


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error in a step; a permanent one is not worth another attempt."""

    step: str
    error_type: str
    message: str
    permanent: bool = False

    def as_event(
        self, number: int, *, duration: float, retry_at: datetime | None, at: datetime, by: str
    ) -> AttemptFailed:
        return AttemptFailed(
            at=at,
            by=by,
            number=number,
            step=self.step,
            error_type=self.error_type,
            message=self.message[:MAX_MESSAGE],
            permanent=self.permanent,
            duration=duration,
            retry_at=retry_at,
        )
