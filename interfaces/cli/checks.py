"""Checks of `uptrail doctor`: one function per check, each with findings and advice."""

from __future__ import annotations

import os
import shutil
import sys
import time
from enum import StrEnum
from pathlib import Path
from uuid import uuid4

import msgspec

from infrastructure.settings import Settings
from interfaces.cli.console import size

OLDEST_PYTHON = (3, 11)
SLOW_SYNC = 0.05  # seconds; slower disks make every small upload wait
SYNCS = 5
CLOCK_OFF = 2.0  # seconds
FAR_BEHIND = 10_000  # positions


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class CheckResult(msgspec.Struct, frozen=True):
    """Result of a check; `advice` is the fix if it is not ok."""

    level: Level
    check: str
    told: str
    advice: str = ""


def python() -> CheckResult:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return CheckResult(Level.FAIL, "python", version, "use Python 3.11 or newer")
    return CheckResult(Level.OK, "python", version)


def data_dir(settings: Settings) -> CheckResult:
    """It can be written, and others cannot read it."""
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / f".probe-{uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        told = f"{folder}: {error.strerror}"
        return CheckResult(Level.FAIL, "data folder", told, "choose another with --data-dir")
    if folder.stat().st_mode & 0o077:
        told = f"{folder} can be read by other users"
        return CheckResult(Level.WARN, "data folder", told, f"chmod 700 {folder}")
    return CheckResult(Level.OK, "data folder", str(folder))


def disk(settings: Settings) -> CheckResult:
    try:
        free = shutil.disk_usage(_existing(settings.blob_dir)).free
    except OSError as error:
        return CheckResult(Level.FAIL, "disk", str(error), "check the folder of the blobs")
    told = f"{size(free)} free"
    if free < settings.min_free_bytes:
        advice = f"uploads are refused below {size(settings.min_free_bytes)}: free some space"
        return CheckResult(Level.FAIL, "disk", told, advice)
    if free < 10 * settings.min_free_bytes:
        return CheckResult(Level.WARN, "disk", told, "free some space soon")
    return CheckResult(Level.OK, "disk", told)


def blobs(settings: Settings) -> CheckResult:
    """Bytes can be made durable there, and fast enough."""
    folder = settings.blob_dir
    probe = folder / f".probe-{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        began = time.perf_counter()
        with probe.open("wb") as file:
            for _ in range(SYNCS):
                file.write(bytes(64 * 1024))
                file.flush()
                os.fdatasync(file.fileno())
        took = (time.perf_counter() - began) / SYNCS
    except OSError as error:
        return CheckResult(
            Level.FAIL, "blobs", f"{folder}: {error.strerror}", "choose another folder"
        )
    finally:
        probe.unlink(missing_ok=True)
    told = f"{folder}, {1000 * took:.1f} ms to make 64 KiB durable"
    if took > SLOW_SYNC:
        return CheckResult(Level.WARN, "blobs", told, "a faster disk makes small uploads faster")
    return CheckResult(Level.OK, "blobs", told)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return folder if folder.exists() else _existing(folder.parent)
