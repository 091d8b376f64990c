"""The files below the given paths, one by one, and what had to be left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from domain.file import path_error
from interfaces.cli.console import UsageError


class ScannedFile(msgspec.Struct, frozen=True):
    """A regular file: `name` is its path in the batch; size in bytes, time of change in ns."""

    path: Path
    name: str
    size: int
    modified: int


class SkippedFile(msgspec.Struct, frozen=True):
    """A file that cannot be sent, and the reason."""

    path: Path
    reason: str


Entry: TypeAlias = ScannedFile | SkippedFile


def resolve_roots(paths: Iterable[Path]) -> dict[str, Path]:
    """Return the given paths by their names in the batch. Raises UsageError."""
    roots: dict[str, Path] = {}
    for path in paths:
        absolute = Path(os.path.abspath(path.expanduser()))
        if not absolute.exists():
            raise UsageError(f"{path} does not exist", "name files or folders to upload")
        name = absolute.name or "root"
        if roots.setdefault(name, absolute) != absolute:
            raise UsageError(
                f"{roots[name]} and {absolute} have the same name", "upload them one by one"
            )
    return roots


def scan(roots: dict[str, Path]) -> Iterator[Entry]:
    """Yield every file in a stable order; linked folders are entered, unless they form a loop."""
    for name, root in roots.items():
        yield from _walk(root, name, frozenset())


def _walk(path: Path, name: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            yield _judge(path, name, status)
            return
        place = (status.st_dev, status.st_ino)
        if place in above:
            yield SkippedFile(path, "a symbolic link back to a folder above it")
            return
        entries = sorted(os.listdir(path))
    except OSError as error:
        yield SkippedFile(path, (error.strerror or str(error)).lower())
        return
    for entry in entries:
        yield from _walk(path / entry, f"{name}/{entry}", above | {place})


def _judge(path: Path, name: str, status: os.stat_result) -> Entry:
    if not stat.S_ISREG(status.st_mode):
        return SkippedFile(path, "not a regular file")
    if problem := path_error(name):
        return SkippedFile(path, f"its name {problem}")
    if not os.access(path, os.R_OK):
        return SkippedFile(path, "permission denied")
    return ScannedFile(path, name, status.st_size, status.st_mtime_ns)
