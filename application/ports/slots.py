"""How many transfers of one owner run at once, in all processes together."""

from __future__ import annotations

from typing import Protocol


class Slot(Protocol):
    """One transfer's place among those of its owner."""

    async def release(self) -> None:
        """Makes room for another one. Never raises."""


class Slots(Protocol):
    """Places that go with the process that took them: kill -9 gives them back."""

    async def take(self, owner: str, most: int) -> Slot | None:
        """A place of the owner's, None where `most` are taken. Raises Unavailable."""
