"""Console of the commands: exit codes, errors, common options, output."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Group, Parameter
from cyclopts.validators import Number

from application.views import AttemptView, BatchView, UploadView
from infrastructure.settings import Settings
from infrastructure.settings_loader import LoadedSettings, load


class Exit(IntEnum):
    """Exit codes, the same for every command (design section 13)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    FAILURES = 3  # it ran to its end, and some files failed
    CANCELLED = 4
    UNREACHABLE = 5
    INTERRUPTED = 130  # Ctrl-C, as shells number it


class CommandError(Exception):
    """Failure of a command; `hint` is the suggested fix."""

    code = Exit.ERROR

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CommandError):
    """The arguments of the command line are invalid or contradict each other."""

    code = Exit.USAGE


class Unreachable(CommandError):
    """No server responds."""

    code = Exit.UNREACHABLE


class Interrupted(CommandError):
    """The user pressed Ctrl-C."""

    code = Exit.INTERRUPTED


class Refusal(CommandError):
    """The server responded with a problem document."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: tuple[str, ...] = (),
        min_position: int | None = None,
    ) -> None:
        """`min_position` is the position that a read waited for in vain."""
        super().__init__("; ".join((detail or code, *errors[:5])), _HINTS.get(code, ""))
        self.status = status
        self.problem = code
        self.min_position = min_position
        self.free: int | None = None
        """Bytes that may still be stored, where the server said so."""


class OutOfService(Refusal):
    """The server, or a proxy in front of it, responded with 502, 503 or 504."""

    code = Exit.UNREACHABLE


@contextmanager
def one_command_error() -> Iterator[None]:
    """Raise the first CommandError of a group instead of the group.

    When the server goes away, all tasks of a group fail for the same reason. Not done with
    `except*`: before Python 3.11.4, what is raised in such a block comes out of it in a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors, others = group.split(CommandError)
        if errors is None or others is not None:
            raise
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


_HINTS = {
    "unauthenticated": "pass a key with --key or UPTRAIL_KEY",
    "scope_missing": "use a key with more rights: uptrail key create --scope operator",
    "not_found": "look for it with: uptrail batch list, webhook list or key list",
    "position_not_reached": "the server is behind with what it shows: try again in a while",
    "storage_full": "free some space on the server, then run the same command again",
    "quota_exceeded": "delete files or raise the limit, then run the same command again",
}
EXIT_OF_OUTCOME = {
    "succeeded": Exit.OK,
    "completed_with_failures": Exit.FAILURES,
    "failed": Exit.FAILURES,
    "cancelled": Exit.CANCELLED,
    "expired": Exit.CANCELLED,
}

# Options that many commands share, and how they find the settings, the server and the key.

CONNECT_TIMEOUT = 10.0  # seconds

_ADDRESS = re.compile(r"https?://(\[[0-9a-fA-F:.%]+\]|[^\s/?#@:\[\]]+)(:\d{1,5})?(/[^\s?#]*)?")
_COMMON = Group("Common options", sort_key=100)


class ServerAddress(msgspec.Struct, frozen=True):
    """URL of a server, and the key for it."""

    url: str
    key: str


class RunningServer(msgspec.Struct, frozen=True):
    """Content of `server.json` in the data directory: the server that runs there."""

    url: str
    pid: int


@Parameter(name="*", group=_COMMON)
@dataclass(frozen=True, kw_only=True)
class DataDirOptions:
    """Options of the data directory."""

    data_dir: Annotated[Path | None, Parameter(help="Folder for everything Uptrail keeps.")] = None
    config: Annotated[Path | None, Parameter(help="Settings in a TOML file.")] = None

    def sourced(self, **options: Any) -> LoadedSettings:
        """Return the settings and their origins, with those of this command. Raises BadSetting."""
        return load({"data_dir": self.data_dir, **options}, config=self.config)

    def settings(self, **options: Any) -> Settings:
        return self.sourced(**options).settings


@Parameter(name="*", group=_COMMON)
@dataclass(frozen=True, kw_only=True)
class ClientOptions(DataDirOptions):
    """Options of commands that call a server."""

    url: Annotated[
        str | None, Parameter(help="Address of the server; by default the one that runs here.")
    ] = None
    key: Annotated[str | None, Parameter(help="API key; by default the admin key made here.")] = (
        None
    )
    json: Annotated[bool, Parameter(help="Print JSON.", negative="")] = False
    connect_timeout: Annotated[
        float, Parameter(help="Seconds for the server to answer first.", validator=Number(gt=0))
    ] = CONNECT_TIMEOUT

    def server(self) -> ServerAddress:
        """Return the server to send requests to. Raises Unreachable, UsageError, CommandError."""
        settings = self.settings()
        url = self.url or os.environ.get("UPTRAIL_URL")
        key = self.key or os.environ.get("UPTRAIL_KEY")
        running = find_running_server(settings.data_dir)
        if url is None and running is None:
            raise Unreachable(
                f"no server runs in {settings.data_dir}",
                "start one with: uptrail serve (or name one with --url)",
            )
        if url is None and running is not None:
            url = running.url
        assert url is not None
        if not _ADDRESS.fullmatch(url):
            raise UsageError(f"{url!r} is no address of a server", "it is like http://host:8080")
        if key is None:
            # The admin key is sent to our own server only, never to an address that a user typed.
            if running is None or url.rstrip("/") != running.url:
                raise UsageError(f"{url} needs a key", "pass it with --key or UPTRAIL_KEY")
            key = _admin_key(settings)
        return ServerAddress(url.rstrip("/"), key)


def find_running_server(data_dir: Path) -> RunningServer | None:
    """Return the server of this data directory, if its process is alive."""
    try:
        running = msgspec.json.decode((data_dir / "server.json").read_bytes(), type=RunningServer)
    except (OSError, msgspec.DecodeError):
        return None
    return running if is_alive(running.pid) else None


def is_alive(pid: int) -> bool:
    """Return whether a process with this id runs, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _admin_key(settings: Settings) -> str:
    try:
        return settings.admin_key_file.read_text().strip()
    except OSError as error:
        raise CommandError(
            f"{settings.admin_key_file} cannot be read: {error.strerror}",
            "pass a key with --key or UPTRAIL_KEY",
        ) from None


# How commands print: JSON for programs, plain tables and sentences for people.

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def emit(value: Any) -> None:
    """Print one JSON document on a line of its own."""
    sys.stdout.buffer.write(msgspec.json.encode(value, enc_hook=str) + b"\n")
    sys.stdout.buffer.flush()


def print_line(line: str = "") -> None:
    """Print one line for people. Control characters, such as in a stored name, are removed."""
    print("".join(c if c.isprintable() else "\ufffd" for c in line), flush=True)


def print_stderr(line: str) -> None:
    """Print such a line on standard error; standard output is for programs."""
    print("".join(c if c.isprintable() else "\ufffd" for c in line), file=sys.stderr, flush=True)


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """Print columns as wide as their longest cell; the last one is never cut."""
    cells = [tuple("" if cell is None else str(cell) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for row in (tuple(name.upper() for name in head), *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line("  ".join(padded).rstrip())


def size(count: float | None) -> str:
    """Return a number of bytes in a unit for people."""
    if count is None:
        return "?"
    for unit in _UNITS:
        if abs(count) < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def format_time(at: datetime | None) -> str:
    """Return the time in the local time zone; with the date unless it is today."""
    if at is None:
        return ""
    local = at.astimezone()
    today = datetime.now(UTC).astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M:%S}"


def format_time_ms(at: datetime) -> str:
    """Return the time in the local time zone, to the millisecond."""
    return f"{format_time(at)}.{at.microsecond // 1000:03}"


def state_label(batch: BatchView) -> str:
    """Return the outcome of a batch, or its state and activity."""
    state = (batch.outcome or batch.state).replace("_", " ")
    if batch.activity is None:
        return state
    doing = batch.activity.replace("_", " ")
    if batch.activity in ("stalled", "paused") and batch.activity_since is not None:
        doing = f"{doing} since {format_time(batch.activity_since)}"
    return f"{state}, {doing}"


def format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in counts.items())


def describe_upload(upload: UploadView) -> str:
    """Describe the state of one upload, with its error."""
    match upload.state:
        case "retry_scheduled":
            again = f", tries again at {format_time(upload.retry_at)}" if upload.retry_at else ""
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
