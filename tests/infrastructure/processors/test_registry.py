from __future__ import annotations

import sys
from pathlib import Path

import pytest

from application.worker.step_result import StepFailure
from infrastructure.processors.registry import open_processors
from infrastructure.processors.simple import SimulatedFailure
from infrastructure.settings import Settings
from tests.infrastructure.processors.step_context import Table, perform, subject

PLUGIN = """
async def shout(subject, bench, options):
    return {"shouted": subject.path.upper()}
"""


async def test_every_step_of_the_default_pipeline_is_known() -> None:
    async with open_processors() as processors:
        steps = Settings().pipelines["default"].steps
        assert {step.processor for step in steps} <= set(processors)
        assert "rehearse" not in {step.processor for step in steps}


async def test_an_installed_package_brings_its_own_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shouting.py").write_text(PLUGIN)
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[uptrail.processors]\nshout = shouting:shout\nlost = nowhere:nothing\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    async with open_processors() as processors:
        result = await processors["shout"](subject(b"", "a.txt"), Table(b""), {})
        assert result == {"shouted": "A.TXT"}
        with pytest.raises(StepFailure, match="No module named 'nowhere'"):
            await processors["lost"](subject(b"", "a.txt"), Table(b""), {})


def test_a_rehearsed_failure_happens_once() -> None:
    options = {"fail_first_attempt_of": ["photos/*.jpg"]}

    with pytest.raises(SimulatedFailure):
        perform("rehearse", b"", "photos/a.jpg", options)
    assert perform("rehearse", b"", "photos/a.jpg", options, attempt=2)[0] == {}
    assert perform("rehearse", b"", "notes.txt", options)[0] == {}
