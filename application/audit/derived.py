"""Findings of verification about tables and tracking positions that are derived from the log."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

MAX_FINDINGS = 100  # further findings are not listed

DerivedKind: TypeAlias = Literal[
    "snapshot_altered",
    "tracking_moved",
    "orchestration_altered",
    "webhook_altered",
    "delivery_altered",
    "answer_altered",
    "key_altered",
    "sign_in_altered",
    "erasure_altered",
    "owner_key_altered",
    "stream_broken",
]


class DerivedFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Finding: a row of a derived table that differs from the log, with the difference."""

    kind: DerivedKind
    table: str
    key: str
    detail: str


class DerivedCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the comparison with the log as of position `head`.

    `checked` counts the rows of each table. `findings` names up to MAX_FINDINGS.
    """

    head: int
    checked: dict[str, int]
    findings: list[DerivedFinding]

    @property
    def sound(self) -> bool:
        return not self.findings
