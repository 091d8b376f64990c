"""The example package of the documentation, installed by pip and run by a real worker."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from application.pipeline import Pipeline, Step
from domain.upload.events import AttemptFailed, AttemptSucceeded
from domain.upload.state import UploadState
from infrastructure.processors.registry import check_pipelines, known_options, open_processors
from infrastructure.settings_loader import BadSetting
from tests.infrastructure.jobs.harness import open_harness, pipeline

EXAMPLE = Path(__file__).parents[3] / "docs/examples/uptrail-words"
TEXT = b"the quick brown fox jumps over the lazy dog\n" * 20_000  # several chunks


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example was installed into, as pip installs any package."""
    folder = tmp_path_factory.mktemp("example")
    source, target = folder / "source", folder / "target"
    shutil.copytree(EXAMPLE, source)  # a build leaves things beside its source
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run(
        [*command, "--no-build-isolation", "--target", str(target), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    return target


@pytest.fixture
def installed(target: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(target))
    yield
    sys.modules.pop("uptrail_words", None)


@pytest.mark.usefixtures("installed")
async def test_a_worker_runs_the_processor_of_an_installed_package(
    database_url: str, tmp_path: Path
) -> None:
    async with open_harness(database_url, tmp_path, pipelines=pipeline("words", top=2)) as harness:
        async with open_processors() as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            batch = await harness.batch({"fox.txt": TEXT, "odd.bin": b"\xff\xfe words"})
            await harness.completed(batch)
            await harness.stop(worker)

        uploads = await harness.uploads(batch)
        (succeeded,) = await harness.all_of(AttemptSucceeded, uploads["fox.txt"].id)
        assert succeeded.results == {"words": {"words": 180_000}}
        blob = succeeded.artifacts["words.json"]
        kept = b"".join([chunk async for chunk in harness.blobs.read(blob)])
        assert json.loads(kept) == {"the": 40_000, "quick": 20_000}
        assert uploads["odd.bin"].state is UploadState.FAILED
        (failed,) = await harness.all_of(AttemptFailed)
        assert (failed.permanent, failed.message) == (True, "the file is not a text in UTF-8")


@pytest.mark.usefixtures("installed")
def test_options_of_a_step_are_checked_at_the_start() -> None:
    step = Step(processor="words", options={"tip": 3})

    with pytest.raises(BadSetting, match="no option 'tip'; did you mean 'top'"):
        check_pipelines({"texts": Pipeline(steps=(step,))}, known_options())
