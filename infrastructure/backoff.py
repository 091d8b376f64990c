"""Exponential backoff between two attempts at the same work."""

from __future__ import annotations


class Backoff:
    """Pauses in seconds that double from `first` to `longest`."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next_pause(self) -> float:
        """Return the pause before the next attempt, and double the one after it."""
        pause = min(self._next, self._longest)
        self._next = min(2 * pause, self._longest)
        return pause

    def reset(self) -> None:
        """Begin with the first pause again, after work that succeeded."""
        self._next = self._first
