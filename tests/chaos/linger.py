"""A processor that takes its time, so that a worker is killed in the middle of an attempt.

It runs in the plant's workers as that of any installed package would; what a path says decides
how it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
from pathlib import Path
from typing import Any

LONGEST = 0.4  # seconds

_ENTRY = "[uptrail.processors]\nlinger = uptrail_linger:linger\n"
_METADATA = "Metadata-Version: 2.1\nName: uptrail-linger\nVersion: 1\n"


def installed(folder: Path) -> Path:
    """The folder, which holds this module as a package for PYTHONPATH."""
    information = folder / "uptrail_linger-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(_METADATA)
    (information / "entry_points.txt").write_text(_ENTRY)
    shutil.copyfile(__file__, folder / "uptrail_linger.py")
    return folder


async def linger(subject: Any, bench: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The hash of the bytes, as a result and as an artifact.

    Raises ConnectionResetError, now and then, for a path that contains "flaky".
    """
    digest = hashlib.sha256()
    async for chunk in bench.read():
        digest.update(chunk)
    for step in range(3):
        await asyncio.sleep(random.uniform(0, LONGEST / 3))
        await bench.progress(step + 1, 3)
    if "flaky" in subject.path and random.random() < 0.5:
        raise ConnectionResetError("the service hung up")
    await bench.attach("sha256.txt", digest.hexdigest().encode())
    return {"sha256": digest.hexdigest()}
