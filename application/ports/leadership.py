"""Port of leader election: components of which at most one runs among all processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

StoreT_co = TypeVar("StoreT_co", covariant=True)


class Leadership(Protocol[StoreT_co]):
    """Leader election for one component."""

    async def __call__(self, lead: Callable[[StoreT_co], Awaitable[None]]) -> None:
        """Stand by until this process leads, then call `lead` with the store of the leader.

        The store belongs to the session that leads: once that session has ended, every method of
        the store raises, and another process leads. Returns when `lead` does, and raises what it
        raises.
        """
