"""A file written in one go: aside, and then in place of any other of its name."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from infrastructure.blobs.local.disk import NEW_FILE, sync_data, sync_folder, write_all

ASIDE = "~"  # in the name of a file that is to replace another, and of no blob

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def replace(path: Path, content: bytes) -> None:
    """Puts the content in place of the file's: a reader gets the old or the new, never a mixture.

    The name of the file aside is that of no blob, so that nobody takes it for one.
    """
    aside = path.with_name(f"{path.name[:200]}{ASIDE}{uuid4().hex}")
    descriptor = os.open(aside, _FLAGS, NEW_FILE)
    try:
        for _ in write_all(descriptor, content):
            pass
        sync_data(descriptor)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    sync_folder(path.parent)
