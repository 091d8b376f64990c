"""Bounded collection of findings about derived tables."""

from __future__ import annotations

from application.audit.derived import MAX_FINDINGS, DerivedFinding, DerivedKind


class Findings:
    """Collector of the first MAX_FINDINGS findings; later ones are dropped."""

    def __init__(self) -> None:
        self.found: list[DerivedFinding] = []

    def add(self, kind: DerivedKind, table: str, key: object, detail: str) -> None:
        if len(self.found) < MAX_FINDINGS:
            self.found.append(DerivedFinding(kind=kind, table=table, key=str(key), detail=detail))


def difference(name: str, found: object, expected: object) -> str:
    """Return the text for a column that differs: its value and the value from the log."""
    return f"{name} is {_short(found)}, the log says {_short(expected)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
