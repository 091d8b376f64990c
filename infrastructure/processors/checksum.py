"""`checksum`: the SHA-256 of the bytes, held against the one that was declared."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

from application.pipeline import Permanent, Subject, Workbench
from infrastructure.processors.options import Options, read

BIG = 64 * 1024  # bytes from which a chunk is worth a thread, which hashes without the GIL


class ChecksumOptions(Options, frozen=True, kw_only=True):
    """There are none."""


class ChecksumMismatch(Permanent):
    """The stored bytes are not those that were declared."""


async def checksum(subject: Subject, bench: Workbench, options: dict[str, Any]) -> dict[str, Any]:
    """Returns `{"sha256": hex}`. Raises ChecksumMismatch, BlobMissing."""
    read(ChecksumOptions, options)
    digest = sha256()
    done = 0
    async for chunk in bench.read():
        if len(chunk) >= BIG:
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
