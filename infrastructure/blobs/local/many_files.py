"""Many small files in one go: all written, then all made durable, on one trip to a thread."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from infrastructure.blobs.local.disk import NEW_FILE, sync_data, sync_folder, write_all
from infrastructure.blobs.local.write_back import begin_write_back

OPEN_AT_ONCE = 128

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


def write_files(files: Mapping[Path, bytes]) -> None:
    """Returns once every file and its name are durable; after an error none of them is there."""
    todo = iter(files.items())
    try:
        while some := list(islice(todo, OPEN_AT_ONCE)):
            _write_some(some)
        for folder in {path.parent for path in files}:
            sync_folder(folder)
    except BaseException:
        for path in files:  # never acknowledged, and nobody else would ever free them
            path.unlink(missing_ok=True)
        raise


def _write_some(files: Sequence[tuple[Path, bytes]]) -> None:
    """Writing begins for all of them before any is waited for: the disk can do several at once."""
    descriptors: list[int] = []
    try:
        for path, content in files:
            descriptors.append(os.open(path, _FLAGS, NEW_FILE))
            for _ in write_all(descriptors[-1], content):
                pass
            begin_write_back(descriptors[-1])
        for descriptor in descriptors:
            sync_data(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
