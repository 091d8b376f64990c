"""Progress of a batch on the console: bars on a terminal, else one line per change."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from application.views import BatchView, UploadView, utc_now
from domain.upload.state import ENDED
from interfaces.cli import console
from interfaces.cli.client import Client, FeedEnded, FeedFrame, subscribe
from interfaces.cli.transfer import UploadProgress

MAX_CACHED_STATES = 20_000  # uploads whose last state is kept, to tell a change from a repetition
WORTH_TELLING = frozenset(
    {"retry_scheduled", "failed", "quarantined", "rejected", "cancelled", "expired"}
)
_ENDED = frozenset(state.value for state in ENDED)


class ProgressReporter(Protocol):
    """Reporter of the progress of a batch; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def note(self, line: str) -> None:
        """Print a note on a line of its own."""

    def sending(self, tally: UploadProgress) -> None:
        """Report the progress of sending."""

    def frame(self, frame: FeedFrame) -> None:
        """Rows of the read model that changed."""


def choose_reporter(*, json: bool, brief: bool = False) -> ProgressReporter:
    """Return the reporter for the kind of standard error.

    `json` prints every change as JSON; `brief` prints only failures and notes where lines are
    printed.
    """
    if json:
        return JsonReporter()
    return BarReporter() if sys.stderr.isatty() else LineReporter(brief)


class StateChangeFilter:
    """Filter for rows whose state changed; remembers a bounded number of last states."""

    def __init__(self) -> None:
        self._seen: OrderedDict[object, object] = OrderedDict()

    def is_new(self, key: object, state: object) -> bool:
        if self._seen.get(key) == state:
            return False
        self._seen[key] = state
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_CACHED_STATES:
            self._seen.popitem(last=False)
        return True


class PlainReporter:
    """Base of reporters that need no setup and no cleanup."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class LineReporter(PlainReporter):
    """Reporter that prints one line per change of state, on standard error."""

    def __init__(self, brief: bool = False) -> None:
        self._brief = brief
        self._changes = StateChangeFilter()

    def note(self, line: str) -> None:
        console.print_stderr(line)

    def sending(self, tally: UploadProgress) -> None:
        pass

    def frame(self, frame: FeedFrame) -> None:
        for upload in frame.uploads:
            new = self._changes.is_new(upload.id, (upload.state, upload.attempt))
            if new and (not self._brief or is_notable(upload)):
                what = f"{upload.path}: {console.describe_upload(upload)}"
                console.print_stderr(f"{console.format_time(upload.updated_at)} {what}")
        for batch in frame.batches:
            if self._changes.is_new(batch.id, (console.state_label(batch), batch.uploads)):
                console.print_stderr(
                    f"{console.format_time(batch.updated_at)} {describe_batch(batch)}"
                )


class JsonReporter(PlainReporter):
    """Reporter that prints every changed row as a JSON line on standard output, and no notes."""

    def note(self, line: str) -> None:
        console.print_stderr(line)

    def sending(self, tally: UploadProgress) -> None:
        pass

    def frame(self, frame: FeedFrame) -> None:
        for kind, rows in (
            ("upload", frame.uploads),
            ("attempt", frame.attempts),
            ("batch", frame.batches),
        ):
            for row in rows:
                console.emit({"kind": kind, kind: row})


class BarReporter:
    """Reporter with bars for bytes and processed files; failures are printed above them."""

    def __init__(self) -> None:
        self._changes = StateChangeFilter()
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

    def sending(self, tally: UploadProgress) -> None:
        self._move_bytes(tally.sent_bytes, tally.size, f"{tally.sent_files}/{tally.files} files")

    def frame(self, frame: FeedFrame) -> None:
        for upload in frame.uploads:
            self._tell(upload)
        for batch in frame.batches:
            self._move_files(batch)

    def _tell(self, upload: UploadView) -> None:
        new = self._changes.is_new(upload.id, (upload.state, upload.attempt))
        if new and is_notable(upload):
            recovered = upload.state == "completed"
            style, mark = ("green", "✓") if recovered else ("yellow", "!")
            line = Text(f"{console.format_time(upload.updated_at)} {mark} ", style=style)
            self._console.print(
                line.append(f"{upload.path}: {console.describe_upload(upload)}", style="default")
            )

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
    """Column with bytes, speed and remaining time, or with the number of files done."""

    def render(self, task: Task) -> Text:
        done, total = int(task.completed), int(task.total or 0)
        if task.fields["unit"] == "files":
            return Text(f"{done}/{total} files")
        parts = [f"{console.size(done)} of {console.size(total)}"]
        if task.speed and not task.finished:
            parts.append(f"{console.size(task.speed)}/s")
            parts.append(f"{timedelta(seconds=int(task.time_remaining or 0))} left")
        return Text(", ".join(parts))


def is_notable(upload: UploadView) -> bool:
    """Return whether the upload failed, or recovered."""
    return upload.state in WORTH_TELLING or (upload.state == "completed" and upload.attempt > 1)


def describe_batch(batch: BatchView) -> str:
    """Return a batch in one line."""
    counts = console.format_counts(batch.counts) or "no uploads yet"
    return f"batch {batch.label or batch.id}: {console.state_label(batch)}; {counts}"


# Follows one batch on the feed until it has its outcome.

REPEAT_INTERVAL = 5.0  # seconds until the server is asked again, where its clock is behind ours


async def wait_for_outcome(client: Client, batch: UUID, screen: ProgressReporter) -> BatchView:
    """Return the batch once it has its outcome; report every change meanwhile.

    Raises FeedEnded, Unreachable.
    """
    async with _Clock(client, screen) as clock:
        async for frame in subscribe(client, [batch]):
            screen.frame(frame)
            for row in frame.batches:
                if row.id != batch or frame.more:
                    continue
                if row.outcome is not None:
                    return row
                clock.set(row)
    raise FeedEnded("the feed ended before the batch did")


class _Clock:
    """Polling of a batch at `activity_until`, when its activity changes without a feed frame."""

    def __init__(self, client: Client, screen: ProgressReporter) -> None:
        self._client = client
        self._screen = screen
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def set(self, row: BatchView) -> None:
        self._stop()
        if row.activity_until is not None:
            self._task = asyncio.create_task(self._look(row), name="activity")

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = None

    async def _look(self, row: BatchView) -> None:
        while row.activity_until is not None:
            left = (row.activity_until - utc_now()).total_seconds()
            await asyncio.sleep(left if left > 0 else REPEAT_INTERVAL)
            try:
                row = await self._client.batch(row.id)
            except console.CommandError:  # the feed fails as well, and reports it
                return
            self._screen.frame(FeedFrame(type="changes", batches=[row]))
