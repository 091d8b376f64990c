"""What people see while a batch runs: bars on a terminal, otherwise one line a change."""

from __future__ import annotations

import sys
from collections import OrderedDict
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from application.views import BatchView, UploadView
from domain.upload.state import ENDED
from interfaces.cli.feed import Frame
from interfaces.cli.output import counted, emit, moment, sentence, size, standing, tell_people
from interfaces.cli.sending import Tally

REMEMBERED = 20_000  # uploads whose last state is kept, to tell a change from a repetition
WORTH_TELLING = frozenset(
    {"retry_scheduled", "failed", "quarantined", "rejected", "cancelled", "expired"}
)
_ENDED = frozenset(state.value for state in ENDED)


class Screen(Protocol):
    """Told of everything that happens; used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def note(self, line: str) -> None:
        """Something worth a line."""

    def sending(self, tally: Tally) -> None:
        """How far the sending is."""

    def frame(self, frame: Frame) -> None:
        """Rows of the read model that changed."""


def make_screen(*, json: bool, brief: bool = False) -> Screen:
    """The screen that fits where standard error goes.

    `json` prints every change as JSON; `brief` leaves out of the lines what goes as it should.
    """
    if json:
        return Json()
    return Bars() if sys.stderr.isatty() else Lines(brief)


class Changes:
    """Tells a change of state from a row that came again; remembers the last states, bounded."""

    def __init__(self) -> None:
        self._seen: OrderedDict[object, object] = OrderedDict()

    def is_new(self, key: object, state: object) -> bool:
        if self._seen.get(key) == state:
            return False
        self._seen[key] = state
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return True


class Plain:
    """Nothing to set up and nothing to tidy."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class Lines(Plain):
    """One line per change of state, on standard error."""

    def __init__(self, brief: bool = False) -> None:
        self._brief = brief
        self._changes = Changes()

    def note(self, line: str) -> None:
        tell_people(line)

    def sending(self, tally: Tally) -> None:
        pass

    def frame(self, frame: Frame) -> None:
        for upload in frame.uploads:
            new = self._changes.is_new(upload.id, (upload.state, upload.attempt))
            if new and (not self._brief or is_worth_telling(upload)):
                tell_people(f"{moment(upload.updated_at)} {upload.path}: {sentence(upload)}")
        for batch in frame.batches:
            if self._changes.is_new(batch.id, (standing(batch), batch.uploads)):
                tell_people(f"{moment(batch.updated_at)} {described(batch)}")


class Json(Plain):
    """Every change of a row as one JSON line on standard output; notes stay out of it."""

    def note(self, line: str) -> None:
        tell_people(line)

    def sending(self, tally: Tally) -> None:
        pass

    def frame(self, frame: Frame) -> None:
        for kind, rows in (
            ("upload", frame.uploads),
            ("attempt", frame.attempts),
            ("batch", frame.batches),
        ):
            for row in rows:
                emit({"kind": kind, kind: row})


class Bars:
    """Bars for the bytes and for the processed files, and above them what went wrong."""

    def __init__(self) -> None:
        self._changes = Changes()
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            _Amount(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=False,
        )
        self._bytes: TaskID | None = None
        self._files: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def note(self, line: str) -> None:
        self._console.print(Text(line))

    def sending(self, tally: Tally) -> None:
        self._move_bytes(tally.sent_bytes, tally.size, f"{tally.sent_files}/{tally.files} files")

    def frame(self, frame: Frame) -> None:
        for upload in frame.uploads:
            self._tell(upload)
        for batch in frame.batches:
            self._move_files(batch)

    def _tell(self, upload: UploadView) -> None:
        new = self._changes.is_new(upload.id, (upload.state, upload.attempt))
        if new and is_worth_telling(upload):
            recovered = upload.state == "completed"
            style, mark = ("green", "✓") if recovered else ("yellow", "!")
            line = Text(f"{moment(upload.updated_at)} {mark} ", style=style)
            self._console.print(line.append(f"{upload.path}: {sentence(upload)}", style="default"))

    def _move_bytes(self, done: int, total: int, note: str) -> None:
        if self._bytes is None:
            self._bytes = self._progress.add_task("sent", total=total, note="", unit="bytes")
        self._progress.update(self._bytes, completed=done, total=total or 1, note=note)

    def _move_files(self, batch: BatchView) -> None:
        if not batch.uploads:
            return
        if self._files is None:
            self._files = self._progress.add_task("processed", total=1, note="", unit="files")
        ended = sum(count for state, count in batch.counts.items() if state in _ENDED)
        bad = sum(count for state, count in batch.counts.items() if state in WORTH_TELLING)
        note = f"{bad} to look at" if bad else ""
        self._progress.update(self._files, completed=ended, total=batch.uploads, note=note)


class _Amount(ProgressColumn):
    """Bytes with speed and time left, or files done of all."""

    def render(self, task: Task) -> Text:
        done, total = int(task.completed), int(task.total or 0)
        if task.fields["unit"] == "files":
            return Text(f"{done}/{total} files")
        parts = [f"{size(done)} of {size(total)}"]
        if task.speed and not task.finished:
            parts.append(f"{size(task.speed)}/s")
            parts.append(f"{timedelta(seconds=int(task.time_remaining or 0))} left")
        return Text(", ".join(parts))


def is_worth_telling(upload: UploadView) -> bool:
    """Whether something went wrong with it, or is well again."""
    return upload.state in WORTH_TELLING or (upload.state == "completed" and upload.attempt > 1)


def described(batch: BatchView) -> str:
    """A batch in a line."""
    counts = counted(batch.counts) or "no uploads yet"
    return f"batch {batch.label or batch.id}: {standing(batch)}; {counts}"
