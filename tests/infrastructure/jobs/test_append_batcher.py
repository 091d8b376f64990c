from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from application.append import Append, AppendResult, StreamAppend
from application.errors import Conflict, OutcomeUnknown
from application.worker.attempt import AppendBatcher
from domain.upload.aggregate import Upload
from domain.upload.events import UploadCancelled
from tests.infrastructure.jobs.harness import ALICE, PipelineHarness, now, open_harness


class Counting:
    """The log, and how many appends it was asked for."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.appends = 0

    async def append(self, append: Append) -> AppendResult:
        self.appends += 1
        appended: AppendResult = await self._log.append(append)
        return appended


async def test_concurrent_writes_are_one_append(database_url: str, tmp_path: Path) -> None:
    async with open_harness(database_url, tmp_path) as harness:
        log, uploads = await _ready(harness)
        batcher: Any = AppendBatcher(log)  # type: ignore[arg-type]

        await asyncio.gather(*(batcher.submit(_cancelling(upload)) for upload in uploads))

        assert log.appends == 1
        for upload in uploads:
            assert (await harness.topics(upload.id))[-1] == "upload.cancelled"


async def test_a_write_that_is_refused_is_refused_alone(database_url: str, tmp_path: Path) -> None:
    async with open_harness(database_url, tmp_path) as harness:
        log, uploads = await _ready(harness)
        batcher: Any = AppendBatcher(log)  # type: ignore[arg-type]
        one, two, three = (_cancelling(upload) for upload in uploads)
        late = StreamAppend(two.stream, (two.expected_version or 0) - 1, two.events)

        answers = await asyncio.gather(
            *(batcher.submit(write) for write in (one, late, three)), return_exceptions=True
        )

        assert [type(answer) for answer in answers] == [type(None), Conflict, type(None)]
        ends = [(await harness.topics(upload.id))[-1] for upload in uploads]
        assert ends == ["upload.cancelled", "upload.file_received", "upload.cancelled"]
        assert len(await harness.all_of(UploadCancelled)) == 2


class LosingAnswers(Counting):
    """The log, whose appends are recorded without an answer."""

    async def append(self, append: Append) -> AppendResult:
        await super().append(append)
        raise OutcomeUnknown("the answer is lost")


async def test_writes_whose_outcome_is_unknown_are_not_written_again(
    database_url: str, tmp_path: Path
) -> None:
    async with open_harness(database_url, tmp_path) as harness:
        _, uploads = await _ready(harness)
        log = LosingAnswers(harness.log)
        batcher: Any = AppendBatcher(log)  # type: ignore[arg-type]

        answers = await asyncio.gather(
            *(batcher.submit(_cancelling(upload)) for upload in uploads), return_exceptions=True
        )

        assert [type(answer) for answer in answers] == [OutcomeUnknown] * 3
        assert log.appends == 1


async def _ready(harness: PipelineHarness) -> tuple[Counting, list[Upload]]:
    """Return three uploads that have arrived and are not enqueued."""
    batch = await harness.batch(seal=False)
    ids = [await harness.receive(batch, f"{n}.txt", b"x") for n in range(3)]
    return Counting(harness.log), [await harness.upload(id) for id in ids]


def _cancelling(upload: Upload) -> StreamAppend:
    return StreamAppend(upload.id, upload.version, upload.cancel("a test", at=now(), by=ALICE))
