from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from application.append import Append, AppendResult, StreamAppend
from application.errors import Conflict
from application.worker.attempt import AppendBatcher
from domain.upload.aggregate import Upload
from domain.upload.events import UploadCancelled
from tests.infrastructure.jobs.plant import ALICE, Plant, now, open_plant


class Counting:
    """The log, and how many appends it was asked for."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.appends = 0

    async def append(self, append: Append) -> AppendResult:
        self.appends += 1
        appended: AppendResult = await self._log.append(append)
        return appended


async def test_what_comes_together_is_one_append(database_url: str, tmp_path: Path) -> None:
    async with open_plant(database_url, tmp_path) as plant:
        log, uploads = await _ready(plant)
        batcher: Any = AppendBatcher(log)  # type: ignore[arg-type]

        await asyncio.gather(*(batcher.submit(_cancelling(upload)) for upload in uploads))

        assert log.appends == 1
        for upload in uploads:
            assert (await plant.topics(upload.id))[-1] == "upload.cancelled"


async def test_a_write_that_is_refused_is_refused_alone(database_url: str, tmp_path: Path) -> None:
    async with open_plant(database_url, tmp_path) as plant:
        log, uploads = await _ready(plant)
        batcher: Any = AppendBatcher(log)  # type: ignore[arg-type]
        one, two, three = (_cancelling(upload) for upload in uploads)
        late = StreamAppend(two.stream, (two.expected_version or 0) - 1, two.events)

        answers = await asyncio.gather(
            *(batcher.submit(write) for write in (one, late, three)), return_exceptions=True
        )

        assert [type(answer) for answer in answers] == [type(None), Conflict, type(None)]
        ends = [(await plant.topics(upload.id))[-1] for upload in uploads]
        assert ends == ["upload.cancelled", "upload.file_received", "upload.cancelled"]
        assert len(await plant.all_of(UploadCancelled)) == 2


async def _ready(plant: Plant) -> tuple[Counting, list[Upload]]:
    """Three uploads that have arrived; nobody releases them."""
    batch = await plant.batch(seal=False)
    ids = [await plant.receive(batch, f"{n}.txt", b"x") for n in range(3)]
    return Counting(plant.log), [await plant.upload(id) for id in ids]


def _cancelling(upload: Upload) -> StreamAppend:
    return StreamAppend(upload.id, upload.version, upload.cancel("a test", at=now(), by=ALICE))
