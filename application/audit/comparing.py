"""Holds the events of a seal against what it says of them, and names what differs by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from application.audit.chain import Finding, Kind
from application.audit.entries import Entry, Stored

_TOLD: dict[Kind, str] = {
    "altered": "the event is not the one that was sealed here",
    "removed": "the event that was sealed here is gone",
    "inserted": "the event was put in after the seal",
    "reordered": "the event was sealed at another position, or stands at another one now",
}


class _Difference(msgspec.Struct):
    """What stood at a position when it was sealed, and what stands there now."""

    sealed: Entry | None = None
    found: Entry | None = None
    what: str = ""


class Comparison:
    """Takes the events of one seal in the order of their positions, and remembers the first that
    differ: at most `most`."""

    def __init__(self, seal: int, entries: Sequence[Entry], most: int) -> None:
        self._seal = seal
        self._sealed = entries
        self._most = most
        self._next = 0  # of the sealed entries
        self._differing: dict[int, _Difference] = {}

    @property
    def full(self) -> bool:
        """Whether enough differs to say no more."""
        return len(self._differing) >= self._most

    def take(self, stored: Stored) -> None:
        entry = stored.entry
        self._pass(entry.position)
        if self.full:
            return
        expected = self._sealed[self._next] if self._next < len(self._sealed) else None
        if expected is not None and expected.position == entry.position:
            self._next += 1
            if expected.digest == entry.digest:
                return
        else:
            expected = None
        what = f"{stored.topic}, version {stored.version} of {stored.stream}"
        self._differing[entry.position] = _Difference(expected, entry, what)

    def findings(self) -> Iterator[Finding]:
        """What differs, by position; to be asked after the last event."""
        self._pass(None)
        differing = self._differing
        sealed = {entry.digest for entry in self._sealed}
        arrived = {one.found.digest for one in differing.values() if one.found is not None}
        for position in sorted(differing):
            one = differing[position]
            if one.found is None:
                kind: Kind = "removed"
                moved = one.sealed is not None and one.sealed.digest in arrived
            else:
                kind = "altered" if one.sealed is not None else "inserted"
                moved = one.found.digest in sealed
            yield self._finding("reordered" if moved else kind, position, one.what)

    def _pass(self, position: int | None) -> None:
        """Sealed events before this position did not come, and will not."""
        while self._next < len(self._sealed) and not self.full:
            expected = self._sealed[self._next]
            if position is not None and expected.position >= position:
                return
            self._differing[expected.position] = _Difference(expected)
            self._next += 1

    def _finding(self, kind: Kind, position: int, what: str) -> Finding:
        detail = f"{_TOLD[kind]} ({what})" if what else _TOLD[kind]
        return Finding(kind=kind, position=position, seal=self._seal, detail=detail)
