"""How many transfers of one owner run at once, in all processes together."""

from __future__ import annotations

from collections import Counter
from typing import Protocol


class Slot(Protocol):
    """One transfer's place among those of its owner."""

    async def release(self) -> None:
        """Makes room for another one. Never raises."""


class Slots(Protocol):
    """Places that go with the process that took them: kill -9 gives them back."""

    async def take(self, owner: str, most: int) -> Slot | None:
        """A place of the owner's, None where `most` are taken. Raises Unavailable."""


class SlotsHere:
    """The port `Slots`, for a process that alone receives uploads."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    async def take(self, owner: str, most: int) -> Slot | None:
        if self._taken[owner] >= most:
            return None
        self._taken[owner] += 1
        return _SlotHere(self._taken, owner)


class _SlotHere:
    def __init__(self, taken: Counter[str], owner: str) -> None:
        self._taken = taken
        self._owner = owner

    async def release(self) -> None:
        self._taken[self._owner] -= 1
        if not self._taken[self._owner]:
            del self._taken[self._owner]
