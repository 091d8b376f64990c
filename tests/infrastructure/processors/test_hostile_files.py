"""Hostile files at a real worker: refused once, with the reason, without other effects."""

from __future__ import annotations

from pathlib import Path

from domain.batch.state import Outcome
from domain.upload.events import AttemptFailed, AttemptStarted
from domain.upload.state import UploadState
from infrastructure.processors.registry import open_processors
from tests.infrastructure.jobs.harness import open_harness, pipeline
from tests.infrastructure.processors.archives import tarred, zipped
from tests.infrastructure.processors.pictures import bomb, picture

HOSTILE = {
    "bomb.png": (bomb(), "60000 x 60000 pixels are more than"),
    "empty.png": (b"", "this is no image/png: it is empty"),
    "bomb.zip": (zipped({"zeros": bytes(64 * 1024 * 1024)}), "over 200 times as much"),
    "bomb.tar.gz": (tarred({"zeros": bytes(64 * 1024 * 1024)}), "over 200 times as much"),
    "slip.zip": (zipped({"../../etc/cron.d/x": b"x"}), "lies outside of it"),
}
SOUND = {
    "photo.jpg": picture("JPEG"),
    "cut.jpg": picture("JPEG")[:3000],
    "all.zip": zipped({"a.txt": b"words"}),
}


async def test_hostile_files_fail_permanently_and_alone(database_url: str, tmp_path: Path) -> None:
    steps = pipeline("checksum", "media-type", "thumbnail", "archive")
    files = {path: content for path, (content, _) in HOSTILE.items()}

    async with open_harness(database_url, tmp_path, pipelines=steps) as harness:
        async with open_processors() as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            done = await harness.completed(await harness.batch({**files, **SOUND}))
            uploads = await harness.uploads(done.id)
            # The same worker goes on as if nothing had been.
            later = await harness.completed(await harness.batch(SOUND))
            await harness.stop(worker)

        assert done.outcome is Outcome.COMPLETED_WITH_FAILURES
        assert later.outcome is Outcome.SUCCEEDED
        assert {p for p, u in uploads.items() if u.state is UploadState.FAILED} == set(HOSTILE)
        for path, (_, reason) in HOSTILE.items():
            (failure,) = await harness.all_of(AttemptFailed, uploads[path].id)
            assert reason in failure.message
            assert failure.permanent
            assert len(await harness.all_of(AttemptStarted, uploads[path].id)) == 1
