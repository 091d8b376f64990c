"""The completion report as bytes: JSON, NDJSON and CSV, a piece at a time."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from application.reporting import Reason, Report, ReportRow
from application.views import BatchView

AT_ONCE = 500  # files in one piece

Format: TypeAlias = Callable[[Report], AsyncIterator[bytes]]

_encoder = msgspec.json.Encoder()
_COLUMNS = ReportRow.__struct_fields__

# A spreadsheet takes a cell that begins so for a formula, and runs it. An apostrophe makes it
# text. Source: OWASP, "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class ReportDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report as one JSON document."""

    batch: BatchView
    position: int
    reasons: list[Reason]
    uploads: list[ReportRow]


async def as_json(report: Report) -> AsyncIterator[bytes]:
    """The summary, then the files, each on a line of its own."""
    head = {"batch": report.batch, "position": report.position, "reasons": report.reasons}
    yield _encoder.encode(head)[:-1] + b',"uploads":['
    comma = b""
    async for rows in _pieces(report.files):
        yield comma + b"\n" + b",\n".join(map(_encoder.encode, rows))
        comma = b","
    yield b"\n]}\n"


async def as_ndjson(report: Report) -> AsyncIterator[bytes]:
    """One file a line."""
    async for rows in _pieces(report.files):
        yield _encoder.encode_lines(rows)


async def as_csv(report: Report) -> AsyncIterator[bytes]:
    """One file a row under a heading (RFC 4180), safe to open in a spreadsheet."""
    yield _csv([_COLUMNS])
    async for rows in _pieces(report.files):
        yield _csv([[_cell(getattr(row, name)) for name in _COLUMNS] for row in rows])


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return f"'{value}" if value.startswith(_FORMULA) else value
        case datetime():
            return value.isoformat()
    return str(value)


async def _pieces(rows: AsyncIterator[ReportRow]) -> AsyncIterator[list[ReportRow]]:
    piece: list[ReportRow] = []
    async for row in rows:
        piece.append(row)
        if len(piece) == AT_ONCE:
            yield piece
            piece = []
    if piece:
        yield piece
