"""Copies of an upload's bytes as files for helper processes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from application.pipeline import StepContext


async def copy_to_file(bench: StepContext, target: Path) -> None:
    """Copy the bytes to a file: helpers need to seek, and this process saves memory.

    Raises BlobMissing, OSError.
    """
    with await asyncio.to_thread(target.open, "xb", 0) as file:
        async for chunk in bench.read():
            await asyncio.to_thread(_write_all, file.fileno(), chunk)


async def copy_ends(bench: StepContext, target: Path, size: int, end: int) -> None:
    """Copy the first and the last `end` bytes of a file of `size` bytes; a hole is between them.

    A header is at one of the ends. Raises BlobMissing, OSError.
    """
    with await asyncio.to_thread(target.open, "xb", 0) as file:
        for start, stop in ((0, end), (max(end, size - end), size)):
            await asyncio.to_thread(file.seek, start)
            async for chunk in bench.read(start, stop):
                await asyncio.to_thread(_write_all, file.fileno(), chunk)


def _write_all(descriptor: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
