"""Step context over bytes in memory that keeps attachments and progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

from application.pipeline import Processor, StepInput
from infrastructure.processors.registry import open_processors

CHUNK = 100_000


class Table:
    """The port `Workbench`."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.reported: list[tuple[int, int | None]] = []
        self.attached: dict[str, bytes] = {}

    async def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        wanted = self._content[start:end]
        for at in range(0, len(wanted), CHUNK):
            yield wanted[at : at + CHUNK]

    async def progress(self, done: int, total: int | None = None) -> None:
        self.reported.append((done, total))

    async def attach(self, name: str, content: bytes) -> None:
        self.attached[name] = content


def subject(content: bytes, path: str = "notes.txt", **more: Any) -> StepInput:
    known: dict[str, Any] = {
        "upload": UUID(int=1),
        "batch": UUID(int=2),
        "owner": "acme",
        "path": path,
        "size": len(content),
        "media_type": None,
        "checksum": None,
        "metadata": {},
        "attempt": 1,
        "results": {},
    }
    return StepInput(**{**known, **more})


class KeptProcessors:
    """All processors on an event loop of their own, kept from one call to the next."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=_new_loop)
        self._opened = AsyncExitStack()
        self.processors: dict[str, Processor] = self._runner.run(
            self._opened.enter_async_context(open_processors())
        )

    def close(self) -> None:
        self._runner.run(self._opened.aclose())
        self._runner.close()

    def perform(self, name: str, given: StepInput, table: Table, options: Any) -> dict[str, Any]:
        async def performing() -> dict[str, Any]:
            return await self.processors[name](given, table, options)

        return self._runner.run(performing())


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


_kept: list[KeptProcessors] = []


def close_kept_processors() -> None:
    while _kept:
        _kept.pop().close()


def perform(
    name: str, content: bytes, path: str = "notes.txt", options: Any = None, **more: Any
) -> tuple[dict[str, Any], Table]:
    """The result of one step over these bytes, and its table afterwards.

    The processors stay open for the next call: `close_kept_processors` ends them.
    """
    if not _kept:
        _kept.append(KeptProcessors())
    table = Table(content)
    given = subject(content, path, **more)
    return _kept[0].perform(name, given, table, options or {}), table
