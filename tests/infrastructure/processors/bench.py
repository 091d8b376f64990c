"""A workbench over bytes in memory, which keeps what a step attaches and reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from application.pipeline import Processor, Subject
from infrastructure.processors.registry import open_processors
from tests.support import run

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


def subject(content: bytes, path: str = "notes.txt", **more: Any) -> Subject:
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
    return Subject(**{**known, **more})


def perform(
    name: str, content: bytes, path: str = "notes.txt", options: Any = None, **more: Any
) -> tuple[dict[str, Any], Table]:
    """The result of one step over these bytes, and its table afterwards."""

    async def performing() -> tuple[dict[str, Any], Table]:
        table = Table(content)
        async with open_processors() as processors:
            processor: Processor = processors[name]
            result = await processor(subject(content, path, **more), table, options or {})
        return result, table

    return run(performing())
