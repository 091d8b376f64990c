"""What a worker asks before it begins: which uploads of a job may be attempted now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import msgspec

from domain.upload.aggregate import Upload
from domain.upload.state import UploadState


class Cleared(msgspec.Struct, frozen=True):
    """An upload of a batch that is under way; `retry_due` when a failed one may be tried again."""

    upload: Upload
    retry_due: bool

    @property
    def may_start(self) -> bool:
        """Whether an attempt may begin: a job that was delivered twice finds it may not."""
        if self.upload.state is UploadState.RETRY_SCHEDULED:
            return self.retry_due
        return self.upload.state is UploadState.QUEUED


class Clearance(Protocol):
    """The orchestrator's word on the uploads of a job."""

    async def cleared(self, uploads: Sequence[UUID]) -> Sequence[Cleared]:
        """Those whose batch is not paused, called off or over, as the log has them now.

        Raises Unavailable.
        """
