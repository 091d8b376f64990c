from __future__ import annotations

from pathlib import Path

from domain.batch.state import Outcome
from domain.upload.events import AttemptFailed, AttemptSucceeded
from domain.upload.state import UploadState
from infrastructure.processors.registry import open_processors
from tests.corpus import images
from tests.infrastructure.jobs.harness import open_harness
from tests.infrastructure.processors.pictures import picture


async def test_ordinary_files_pass_and_those_that_are_not_what_they_claim_fail_once(
    database_url: str, tmp_path: Path
) -> None:
    sound = {
        "notes.txt": b"words\n",
        "empty.txt": b"",
        "paper.pdf": b"%PDF-1.7\n%\xe2\xe3",
        "table.csv": b"a;b\n1;2\n",
        "photo.jpg": picture("JPEG"),
        "cut.jpg": picture("JPEG")[:3000],
        "108-megapixels.jpg": images.large_jpeg(),
        "float.tif": images.float_tiff(),
        "IMG_0001.CR2": images.canon_cr2(),
        "text.png": images.png_with_text(),
        "IMG_0002.HEIC": images.heic(),
    }
    broken = {"page.png": b"<html>", "empty.png": b""}

    async with open_harness(database_url, tmp_path) as harness:
        async with open_processors() as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            batch = await harness.batch({**sound, **broken})
            done = await harness.completed(batch)
            await harness.stop(worker)

        assert done.outcome is Outcome.COMPLETED_WITH_FAILURES
        uploads = await harness.uploads(batch)
        completed = {p for p, u in uploads.items() if u.state is UploadState.COMPLETED}
        assert completed == set(sound)
        failures = await harness.all_of(AttemptFailed)
        assert len(failures) == len(broken)
        assert all(failure.permanent for failure in failures)
        (photo,) = await harness.all_of(AttemptSucceeded, uploads["photo.jpg"].id)
        assert await harness.blobs.size(photo.artifacts["thumbnail.webp"]) > 0
        reasons = {}
        for path in sound:
            (attempt,) = await harness.all_of(AttemptSucceeded, uploads[path].id)
            reasons[path] = attempt.results["thumbnail"].get("skipped")
        made = {"photo.jpg", "108-megapixels.jpg", "float.tif", "text.png"}
        assert {path for path, reason in reasons.items() if reason is None} == made
        assert reasons["IMG_0001.CR2"] == "no picture can be made of image/x-canon-cr2"
        assert "truncated" in reasons["cut.jpg"]
