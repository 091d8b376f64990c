"""How events that were stored in an older shape become events of today's shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Upcast: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns a stored event of version n, as plain JSON types, into version n + 1."""

Chains: TypeAlias = Mapping[str, Sequence[Upcast]]

CHAINS: Chains = {}
"""By topic: the first function leads from version 1 to 2, the next from 2 to 3, and so on.

A class whose shape changed gets a function here and keeps its tag. Fields that merely
joined with a default need none.
"""


class WrittenByLaterVersion(ValueError):
    """An event has a version that this code does not know yet."""


class Upcasters:
    """The chains, as questions."""

    def __init__(self, chains: Chains = CHAINS) -> None:
        self._chains = {topic: tuple(chain) for topic, chain in chains.items() if chain}

    def __contains__(self, topic: str) -> bool:
        """Whether the shape of this topic ever changed."""
        return topic in self._chains

    def version(self, topic: str) -> int:
        """The version that events of this topic have today, from 1."""
        return 1 + len(self._chains.get(topic, ()))

    def upcast(self, topic: str, version: int, event: dict[str, Any]) -> dict[str, Any]:
        """The event in today's shape. Raises WrittenByLaterVersion."""
        if version > self.version(topic):
            known = self.version(topic)
            raise WrittenByLaterVersion(f"version {version} is later than {known}, known here")
        for step in self._chains.get(topic, ())[version - 1 :]:
            event = step(event)
        return event
