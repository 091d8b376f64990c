"""What went wrong in an attempt, told as it was."""

from __future__ import annotations

from datetime import datetime

import msgspec

from domain.upload.events import AttemptFailed

MAX_MESSAGE = 2000  # characters
MAX_ERROR_TYPE = 200  # characters


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error in a step; a permanent one is not worth another attempt."""

    step: str
    error_type: str
    message: str
    permanent: bool = False

    @property
    def shown(self) -> str:
        """The message, cut to what an event holds."""
        return self.message[:MAX_MESSAGE]

    def as_event(
        self, number: int, *, duration: float, retry_at: datetime | None, at: datetime, by: str
    ) -> AttemptFailed:
        return AttemptFailed(
            at=at,
            by=by,
            number=number,
            step=self.step,
            error_type=self.error_type[:MAX_ERROR_TYPE],
            message=self.shown,
            permanent=self.permanent,
            duration=duration,
            retry_at=retry_at,
        )
