"""A folder into a batch: files are announced in lists and sent several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from uuid import UUID

import msgspec

from domain.file import FileDeclaration
from interfaces.cli.bundling import SMALL, Bundle, Task, pack, received_already, send_packed
from interfaces.cli.client import AddedFile, Client
from interfaces.cli.errors import Refusal, one_command_error
from interfaces.cli.tus import AGAIN, FileChanged, Source, send
from interfaces.cli.walking import Entry, Found, Skipped, walk

LIST = 500  # files announced in one request
SHOWN_FAILURES = 200

Trouble = Callable[[str, str], None]


class Tally(msgspec.Struct):
    """How far it is. `sent_bytes` counts those that count as sent, now or by an earlier run.

    `stopped` is why the rest was not sent, where that may change: another run goes on with it.
    """

    files: int = 0
    size: int = 0
    sent_files: int = 0
    sent_bytes: int = 0
    failures: int = 0
    reasons: list[tuple[str, str]] = []
    stopped: Refusal | None = None

    @property
    def unsent_files(self) -> int:
        """How many files another run would have to send."""
        return max(0, self.files - self.sent_files - self.failures)

    def stop(self, refusal: Refusal) -> None:
        """Nothing more is sent: the first reason stands for all files."""
        self.stopped = self.stopped or refusal

    def fail(self, path: str, reason: str) -> None:
        """Counts a failure, and keeps the first of them to be shown."""
        self.failures += 1
        if len(self.reasons) < SHOWN_FAILURES:
            self.reasons.append((path, reason))


class Sender:
    """Sends everything below the roots into one open batch: small files together, others alone."""

    def __init__(
        self, client: Client, batch: UUID, roots: dict[str, Path], jobs: int, trouble: Trouble
    ) -> None:
        self._client = client
        self._batch = batch
        self._roots = roots
        self._jobs = jobs
        self._trouble = trouble
        self._queue: asyncio.Queue[Task | Bundle | None] = asyncio.Queue(2 * LIST)
        self._bundle = Bundle()
        self._there: frozenset[UUID] | None = None  # asked for once an earlier run is met
        self.tally = Tally()

    def measure(self) -> None:
        """Counts files and bytes first, so that progress has a whole to be part of."""
        for entry in walk(self._roots):
            if isinstance(entry, Found):
                self.tally.files += 1
                self.tally.size += entry.size

    async def run(self) -> Tally:
        """Raises Refusal, Unreachable when the batch itself cannot go on."""
        with one_command_error():
            async with asyncio.TaskGroup() as group:
                for _ in range(self._jobs):
                    group.create_task(self._transfer())
                group.create_task(self._announce())
        return self.tally

    async def _announce(self) -> None:
        entries = walk(self._roots)
        while not self.tally.stopped and (listed := await asyncio.to_thread(_next_list, entries)):
            for entry in listed:
                if isinstance(entry, Skipped):
                    self._fail(str(entry.path), entry.reason)
            files = [entry for entry in listed if isinstance(entry, Found)]
            for file, answer in zip(files, await self._declare(files), strict=True):
                if answer.status == "rejected":
                    self._fail(file.name, answer.message or "rejected by the server")
                else:
                    await self._assign(Task(answer.upload, file, answer.status == "added"))
        if self._bundle.tasks:
            await self._queue.put(self._bundle)
        for _ in range(self._jobs):
            await self._queue.put(None)

    async def _declare(self, files: list[Found]) -> list[AddedFile]:
        if not files:
            return []
        declared = [FileDeclaration(path=file.name, size=file.size) for file in files]
        return await self._client.add_files(self._batch, declared)

    async def _assign(self, task: Task) -> None:
        """What an earlier run has sent counts as sent; the rest is put where it will travel."""
        if task.file.size > SMALL:
            await self._queue.put(task)
            return
        if not task.fresh and self._there is None:
            self._there = await received_already(self._client, self._batch)
        if not task.fresh and self._there is not None and task.upload in self._there:
            self._sent(task)
        elif self._bundle.add(task):
            await self._queue.put(self._bundle)
            self._bundle = Bundle()

    async def _transfer(self) -> None:
        while work := await self._queue.get():
            if self.tally.stopped:
                continue  # dropped, so that the producer of the queue is not blocked
            if isinstance(work, Bundle):
                await self._send_together(work.tasks)
            else:
                await self._send_alone(work)

    async def _send_together(self, tasks: list[Task]) -> None:
        packed = await asyncio.to_thread(pack, tasks)
        for task, reason in packed.unreadable:
            await self._give_up(task, reason)
        try:
            answers = await send_packed(self._client, self._batch, packed.body)
        except Refusal as refusal:
            await self._refused(packed.tasks, refusal)
            return
        for task, answer in zip(packed.tasks, answers, strict=True):
            if answer.status == "rejected":
                await self._give_up(task, answer.message or "rejected by the server")
            else:
                self._sent(task)

    async def _send_alone(self, task: Task) -> None:
        try:
            with Source(task.file.path, task.file.size, task.file.modified, self._moved) as source:
                await send(self._client, task.upload, source, fresh=task.fresh)
            self.tally.sent_files += 1
        except FileChanged:
            await self._give_up(task, "it changed on the disk while it was being sent")
        except PermissionError as error:
            await self._give_up(task, (error.strerror or str(error)).lower())
        except FileNotFoundError:
            await self._give_up(task, "it vanished from the disk before it was sent")
        except Refusal as refusal:
            await self._refused([task], refusal)

    async def _refused(self, tasks: list[Task], refusal: Refusal) -> None:
        """The server took none of these. Raises the refusal where it is about the whole batch.

        What may be different later, such as a full disk, ends the sending; what was announced
        waits in the open batch for another run. Otherwise it would be sealed with files that
        never come.
        """
        if refusal.status in (401, 403):
            raise refusal
        if refusal.status >= 500 or refusal.status in AGAIN:
            self.tally.stop(refusal)
            return
        for task in tasks:
            await self._give_up(task, str(refusal))

    async def _give_up(self, task: Task, reason: str) -> None:
        """Cancels the announced upload, so that the batch does not wait for it for ever."""
        self._fail(task.file.name, reason)
        try:
            await self._client.command(f"/v1/uploads/{task.upload}/cancel")
        except Refusal as refusal:
            if refusal.status != 409:  # it has ended already
                raise

    def _sent(self, task: Task) -> None:
        """All of it is there, by one request for many files."""
        self.tally.sent_files += 1
        self._moved(task.file.size)

    def _moved(self, size: int) -> None:
        self.tally.sent_bytes += size

    def _fail(self, name: str, reason: str) -> None:
        self.tally.fail(name, reason)
        self._trouble(name, reason)


def _next_list(entries: Iterator[Entry]) -> list[Entry]:
    return list(islice(entries, LIST))
