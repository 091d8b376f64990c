from __future__ import annotations

from pathlib import Path

from domain.batch.state import Outcome
from domain.upload.events import AttemptFailed, AttemptSucceeded
from domain.upload.state import UploadState
from infrastructure.processors.registry import open_processors
from tests.infrastructure.jobs.plant import Plant, play
from tests.infrastructure.processors.pictures import picture


def test_ordinary_files_pass_and_broken_ones_fail_once_with_the_reason(
    database_url: str, tmp_path: Path
) -> None:
    sound = {
        "notes.txt": b"words\n",
        "empty.txt": b"",
        "paper.pdf": b"%PDF-1.7\n%\xe2\xe3",
        "table.csv": b"a;b\n1;2\n",
        "photo.jpg": picture("JPEG"),
    }
    broken = {"cut.jpg": picture("JPEG")[:3000], "empty.png": b""}

    async def story(plant: Plant) -> None:
        async with open_processors() as processors:
            plant.orchestrate()
            worker = plant.work(processors)
            batch = await plant.batch({**sound, **broken})
            done = await plant.completed(batch)
            await plant.stop(worker)

        assert done.outcome is Outcome.COMPLETED_WITH_FAILURES
        uploads = await plant.uploads(batch)
        completed = {p for p, u in uploads.items() if u.state is UploadState.COMPLETED}
        assert completed == set(sound)
        failures = await plant.all_of(AttemptFailed)
        assert len(failures) == len(broken)
        assert all(failure.permanent for failure in failures)
        (photo,) = await plant.all_of(AttemptSucceeded, uploads["photo.jpg"].id)
        assert await plant.blobs.size(photo.artifacts["thumbnail.webp"]) > 0

    play(database_url, tmp_path, story)
