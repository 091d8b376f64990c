"""Many small files in one go: a wave of them is written in a thread, then synced all at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

from application.errors import ApplicationError
from infrastructure.blobs.local.disk import NEW_FILE, told, write_all
from infrastructure.blobs.local.kernel_syncs import KernelSyncs, Sync, What
from infrastructure.blobs.local.write_back import begin_write_back
from infrastructure.tasks import delivered

WAVE = 64  # files, or folders: with more at once the disk does no more

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Item = TypeVar("Item")
Descriptors: TypeAlias = list[int]


class Waves:
    """Writes files of new names; a thread that syncs one after the other takes five times as long.

    Whoever is cancelled leaves files that nobody knows of: they are the sweeper's.
    """

    def __init__(self, syncs: KernelSyncs | None, threads: Executor) -> None:
        """Without `syncs`, and where the kernel has its hands full, a thread waits for the disk."""
        self._syncs = syncs
        self._threads = threads

    async def write(self, files: Mapping[Path, bytes]) -> None:
        """Returns once every file and its name are durable; after an error none of them is there.

        Raises StorageFull, Unavailable.
        """
        try:
            for some in _waves(files.items()):
                await self._sync(await self._open(partial(_write, some)), What.DATA)
            for folders in _waves({path.parent for path in files}):
                await self._sync(await self._open(partial(_look_into, folders)), What.EVERYTHING)
        except ApplicationError:
            await asyncio.get_running_loop().run_in_executor(self._threads, _remove, files)
            raise

    async def _open(self, work: Callable[[], Descriptors]) -> Descriptors:
        """In a thread; a caller that is cancelled meanwhile leaves nothing open."""
        opening = asyncio.get_running_loop().run_in_executor(self._threads, work)
        with told():
            return await delivered(opening, _close)

    async def _sync(self, descriptors: Descriptors, what: What) -> None:
        """Closes them as well."""
        with told():
            syncing = self._begin([Sync(descriptor, what) for descriptor in descriptors])
            if syncing is not None:
                _close(descriptors)
                await syncing
            else:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._threads, _settle, descriptors)

    def _begin(self, syncs: Sequence[Sync]) -> asyncio.Future[None] | None:
        return self._syncs.begin(syncs) if self._syncs is not None else None


def _waves(items: Iterable[Item]) -> Iterable[list[Item]]:
    todo = iter(items)
    return iter(lambda: list(islice(todo, WAVE)), [])


def _write(files: Sequence[tuple[Path, bytes]]) -> Descriptors:
    descriptors: Descriptors = []
    try:
        for path, content in files:
            descriptors.append(os.open(path, _NEW, NEW_FILE))
            for _ in write_all(descriptors[-1], content):
                pass
    except BaseException:
        _close(descriptors)
        raise
    return descriptors


def _look_into(folders: Sequence[Path]) -> Descriptors:
    descriptors: Descriptors = []
    try:
        for folder in folders:
            descriptors.append(os.open(folder, _FOLDER))
    except BaseException:
        _close(descriptors)
        raise
    return descriptors


def _settle(descriptors: Descriptors) -> None:
    """The same by ourselves; writing begins for all of them before any is waited for."""
    try:
        for descriptor in descriptors:
            begin_write_back(descriptor)
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        _close(descriptors)


def _close(descriptors: Descriptors) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _remove(files: Iterable[Path]) -> None:
    for path in files:  # never acknowledged, and nobody else would ever free them
        path.unlink(missing_ok=True)
