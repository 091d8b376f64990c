"""Processors without child processes or services: `checksum`, and `rehearse` for demos."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

from application.pipeline import PermanentError, StepContext, StepInput
from infrastructure.processors.options import Options, parse_options

MIN_THREAD_CHUNK = 64 * 1024  # bytes from which hashing in a thread, without the GIL, pays off


class ChecksumOptions(Options, frozen=True, kw_only=True):
    """No options."""


class ChecksumMismatch(PermanentError):
    """The stored bytes differ from the declared ones."""


async def compute_checksum(
    subject: StepInput, bench: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Return `{"sha256": hex}`. Raises ChecksumMismatch, BlobMissing."""
    parse_options(ChecksumOptions, options)
    digest = sha256()
    done = 0
    async for chunk in bench.read():
        if len(chunk) >= MIN_THREAD_CHUNK:
            await asyncio.to_thread(digest.update, chunk)
        else:
            digest.update(chunk)
        done += len(chunk)
        await bench.progress(min(done, subject.size), subject.size)
    found = digest.hexdigest()
    if done != subject.size:
        raise ChecksumMismatch(f"{done} bytes are stored, {subject.size} were received")
    if subject.checksum is not None and subject.checksum != f"sha256:{found}":
        raise ChecksumMismatch(f"declared as {subject.checksum}, stored is sha256:{found}")
    return {"sha256": found}


class RehearseOptions(Options, frozen=True, kw_only=True):
    """Patterns of the paths whose first attempt fails."""

    fail_first_attempt_of: tuple[str, ...] = ()


class SimulatedFailure(Exception):
    """A simulated error; the next attempt succeeds."""

    error_type = "Rehearsed"


async def fail_once(
    subject: StepInput, bench: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Fail the first attempt of every path that matches a pattern of `fail_first_attempt_of`.

    Patterns are those of a shell, such as `*.jpg`, matched against the whole path. Raises
    SimulatedFailure.
    """
    patterns = parse_options(RehearseOptions, options).fail_first_attempt_of
    if subject.attempt == 1 and any(fnmatchcase(subject.path, pattern) for pattern in patterns):
        raise SimulatedFailure("a rehearsed failure: the pipeline asks for it on the first attempt")
    return {}
