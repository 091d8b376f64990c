"""Small files written in one go: new ones at once, known ones aside and then in place."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from uuid import uuid4

from infrastructure.blobs.local.disk import NEW_FILE, sync_data, sync_folder, write_all
from infrastructure.blobs.local.kernel_syncs import KernelSyncs, Sync, What

ASIDE = "~"  # in the name of a file that is to replace another, and of no blob

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def create(path: Path, content: bytes) -> int | None:
    """An open descriptor of the new file, to be settled; None where the name is taken."""
    try:
        descriptor = os.open(path, _FLAGS, NEW_FILE)
    except FileExistsError:
        return None
    try:
        for _ in write_all(descriptor, content):
            pass
    except BaseException:
        os.close(descriptor)
        path.unlink()  # never acknowledged, and nobody else would ever free it
        raise
    return descriptor


def discard_unwanted(path: Path, descriptor: int | None) -> None:
    """What was created for somebody who has gone away: nobody else would ever free it."""
    if descriptor is not None:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def begin_settling(
    syncs: KernelSyncs, descriptor: int, folder: Path
) -> asyncio.Future[None] | None:
    """Begins what `settle` does; None, and nothing closed, where the kernel does not take it on."""
    try:
        names = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        settling = syncs.begin([Sync(descriptor, What.DATA), Sync(names, What.EVERYTHING)])
    finally:
        os.close(names)
    if settling is not None:
        os.close(descriptor)
    return settling


def settle(descriptor: int, folder: Path) -> None:
    """Makes a new file and its name in the folder durable, and closes it, come what may."""
    try:
        sync_data(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(folder)


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
