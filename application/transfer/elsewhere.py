"""The other processes that receive uploads: the newest request wins over theirs too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID


class Elsewhere(Protocol):
    """A way to ask every other process to let go of an upload.

    It is only asked where the blob store found that somebody else is writing.
    """

    async def stop(self, upload: UUID) -> None:
        """Asks the others to end their transfer of this upload; its bytes are committed first.

        Returns without waiting for them.
        """

    def on_stop(self, callback: Callable[[UUID], None]) -> None:
        """Calls back, in the event loop, for every upload that another process asks for."""
