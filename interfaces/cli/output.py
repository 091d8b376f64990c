"""How commands print: JSON for programs, plain tables and sentences for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from application.views import AttemptView, BatchView, UploadView

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def emit(value: Any) -> None:
    """One JSON document on a line of its own."""
    sys.stdout.buffer.write(msgspec.json.encode(value, enc_hook=str) + b"\n")
    sys.stdout.buffer.flush()


def say(line: str = "") -> None:
    """One line for people. Control characters, as in a stored name, are not passed on."""
    print("".join(c if c.isprintable() else "\ufffd" for c in line), flush=True)


def tell_people(line: str) -> None:
    """Likewise on standard error, where standard output belongs to programs."""
    print("".join(c if c.isprintable() else "\ufffd" for c in line), file=sys.stderr, flush=True)


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """Columns as wide as they need to be; the last one is never cut."""
    cells = [tuple("" if cell is None else str(cell) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for row in (tuple(name.upper() for name in head), *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(padded).rstrip())


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "?"
    for unit in _UNITS:
        if abs(count) < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def moment(at: datetime | None) -> str:
    """A time of day in the reader's own zone; with the date where it is not today's."""
    if at is None:
        return ""
    local = at.astimezone()
    today = datetime.now(UTC).astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M:%S}"


def instant(at: datetime) -> str:
    """Likewise, to the millisecond."""
    return f"{moment(at)}.{at.microsecond // 1000:03}"


def standing(batch: BatchView) -> str:
    """The outcome of a batch, or its state and what it is doing."""
    state = (batch.outcome or batch.state).replace("_", " ")
    if batch.activity is None:
        return state
    doing = batch.activity.replace("_", " ")
    if batch.activity in ("stalled", "paused") and batch.activity_since is not None:
        doing = f"{doing} since {moment(batch.activity_since)}"
    return f"{state}, {doing}"


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in counts.items())


def sentence(upload: UploadView) -> str:
    """What has become of one upload, with the error as it was."""
    match upload.state:
        case "retry_scheduled":
            again = f", tries again at {moment(upload.retry_at)}" if upload.retry_at else ""
            return f"attempt {upload.attempt} failed{_why(upload)}{again}"
        case "processing" | "completed" if upload.attempt > 1:
            return f"{upload.state}, attempt {upload.attempt}"
        case "failed" | "quarantined" | "rejected":
            return f"{upload.state}{_why(upload)}"
        case "transferring":
            return f"transferring {upload.percent or 0:.0f} %"
    return upload.state


def attempt_sentence(attempt: AttemptView) -> str:
    told = f"attempt {attempt.number}: {attempt.state}"
    if attempt.message:
        told += f" in {attempt.step}: {attempt.message}" if attempt.step else f": {attempt.message}"
    return told


def _why(upload: UploadView) -> str:
    where = f" in {upload.error_step}" if upload.error_step else ""
    return f"{where}: {upload.error}" if upload.error else where
