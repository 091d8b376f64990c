"""Small files made durable together: one trip to a thread for all that wait at the moment.

A thread that waits for the disk takes the interpreter's lock anew after every call, and holds
up the loop each time: for small files that costs more than the disk does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeAlias

from infrastructure.blobs.disk import sync_data, sync_folder, told
from infrastructure.blobs.write_back import begin_write_back

GROUP = 64  # files at most that wait for each other

_Waiting: TypeAlias = tuple[int, Path, "asyncio.Future[None]"]


class GroupSync:
    """Syncs open files and the folders that name them."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._waiting: list[_Waiting] = []
        self._working: asyncio.Task[None] | None = None

    async def sync(self, descriptor: int, folder: Path) -> None:
        """Returns once the file and its name in the folder are durable.

        The descriptor must stay open until then, also where the caller is cancelled: who is
        cancelled here leaves only when its file is no longer being worked with.
        Raises StorageFull, Unavailable.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((descriptor, folder, future))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="group sync")
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise

    async def _work(self) -> None:
        """Group after group, as long as anybody waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
            try:
                outcomes = await loop.run_in_executor(self._threads, _sync_all, group)
            except BaseException as failure:  # the threads are gone: nobody may wait for ever
                outcomes = [failure] * len(group)
            for (_, _, future), error in zip(group, outcomes, strict=True):
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)


def _sync_all(group: Sequence[_Waiting]) -> list[BaseException | None]:
    """What became of each. Folders last: one sync covers all names that are new in it.

    Writing is begun for all before any is waited for: then a journal commits them together, which
    takes half the time that one commit a file does.
    """
    for descriptor, _, _ in group:
        begin_write_back(descriptor)
    outcomes = [_outcome(descriptor) for descriptor, _, _ in group]
    folders = {folder: _outcome(folder) for folder in {folder for _, folder, _ in group}}
    return [
        outcome or folders[folder] for outcome, (_, folder, _) in zip(outcomes, group, strict=True)
    ]


def _outcome(what: int | Path) -> BaseException | None:
    try:
        with told():
            if isinstance(what, int):
                sync_data(what)
            else:
                sync_folder(what)
    except Exception as error:
        return error
    return None
