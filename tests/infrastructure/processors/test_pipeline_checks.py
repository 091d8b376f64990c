from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from application.pipeline import Pipeline, Step
from application.worker.step_result import StepFailure
from domain.retry import RetryPolicy
from infrastructure.processors.registry import (
    PROCESSORS,
    check_pipelines,
    known_options,
    open_processors,
)
from infrastructure.processors.simple import SimulatedFailure
from infrastructure.settings import Settings
from infrastructure.settings_loader import BadSetting, load, redacted
from tests.infrastructure.processors.step_context import Table, perform, subject

GOOD = """
[retry_policy]
attempts = 4

[pipelines.photos]
retry_policy = { attempts = 7 }
steps = [
    { processor = "checksum" },
    { processor = "media-type", options = { allow = ["image/*"] } },
    { processor = "thumbnail", timeout = 60.0, concurrency = 2, options = { side = 200 } },
    { processor = "thumbnail", name = "large", options = { side = 1200 } },
]
"""


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def settings_of(text: str, folder: Path) -> Settings:
    config = folder / "uptrail.toml"
    config.write_text(text)
    return load(config=config, environ={}).settings


def check(**steps: Any) -> None:
    step = msgspec.convert(steps, Step)
    check_pipelines({"mine": Pipeline(steps=(Step(processor="checksum"), step))}, known_options())


def test_a_pipeline_of_the_settings_is_accepted_and_has_its_own_retries(tmp_path: Path) -> None:
    settings = settings_of(GOOD, tmp_path)

    check_pipelines(settings.pipelines, known_options())

    assert settings.retry_policy_of("photos") == RetryPolicy(attempts=7)
    assert settings.retry_policy_of("default") == RetryPolicy(attempts=4)
    labels = [step.label for step in settings.pipelines["photos"].steps]
    assert labels == ["checksum", "media-type", "thumbnail", "large"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"processor": "resize"},
            r"pipelines.mine, step 2 \(resize\): there is no processor 'resize'; "
            r"known are antivirus, archive, checksum, ",
        ),
        (
            {"processor": "thumbnail", "name": "small", "options": {"sides": 3}},
            r"step 2 \(small\): there is no option 'sides'; did you mean 'side'\? Known are max_by",
        ),
        ({"processor": "thumbnail", "options": {"x": 3}}, "no option 'x'; known are max_bytes, "),
        ({"processor": "thumbnail", "options": {"side": "big"}}, r"Expected `int`.*\$\.side"),
        ({"processor": "media-type", "options": {"allow": "image/*"}}, r"Expected `array.*allow"),
        ({"processor": "rehearse", "options": {"fail": []}}, "known are fail_first_attempt_of"),
        (
            {"processor": "checksum", "name": "again", "options": {"algorithm": "md5"}},
            "there is no option 'algorithm'; it has none",
        ),
        ({"processor": "antivirus", "options": {"address": "clamd"}}, "must be unix:/path or tcp"),
        ({"processor": "archive", "options": {"max_members": 0}}, r">= 1.*\$\.max_members"),
        ({"processor": "http", "options": {"url": "https://a.example/"}}, "'secret' is missing"),
        (
            {"processor": "http", "options": {"url": "ftp://a.example", "secret": SECRET}},
            r"regex.*\$\.url",
        ),
        (
            {"processor": "http", "options": {"url": "http://①⓪.1.2.3/", "secret": SECRET}},
            "`url` leads to a private network: 10.1.2.3",
        ),
        (
            {"processor": "http", "options": {"url": "http://0x7f.1/", "secret": SECRET}},
            "`url` has a host that is no address of four decimal numbers",
        ),
        (
            {"processor": "http", "options": {"url": "https://a.example", "secret": "hush"}},
            "`secret` must be whsec_ and 24 to 64 bytes in base64$",
        ),
    ],
)
def test_an_invalid_step_is_reported_with_the_known_options(step: Any, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        check(**step)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ('{ processor = "checksum", timeout = 0 }', r"> 0.0.*timeout"),
        ('{ processor = "checksum", concurrency = 0 }', r">= 1.*concurrency"),
        ('{ processor = "a" }, { processor = "a" }', "the name 'a' is taken: give the step"),
        ('{ processor = "transfer" }', "the name 'transfer' is taken"),
        ('{ procesor = "checksum" }', "procesor"),
    ],
)
def test_a_pipeline_of_no_sense_is_refused_where_it_is_read(
    steps: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting, match=f"pipelines is not as it must be: .*{message}"):
        settings_of(f"[pipelines.mine]\nsteps = [{steps}]", tmp_path)


def test_secrets_of_steps_are_never_shown(tmp_path: Path) -> None:
    text = """
    [pipelines.mine]
    steps = [
        { processor = "checksum" },
        { processor = "x", options = { url = "https://me:pass@host/", secret = "whsec_abc" } },
    ]
    """
    message = str(redacted(settings_of(text, tmp_path).pipelines))

    assert "https://me:***@host/" in message
    assert "checksum" in message
    assert "whsec_abc" not in message


def test_the_pipeline_of_the_manual_is_accepted(tmp_path: Path) -> None:
    manual = Path(__file__).parents[3] / "docs/pipelines.md"
    (example,) = re.findall(r"```toml\n(\[pipelines.*?)```", manual.read_text(), re.DOTALL)

    settings = settings_of(example.replace("whsec_...", SECRET), tmp_path)

    check_pipelines(settings.pipelines, known_options())
    assert set(settings.pipelines) == {"default", "documents"}


def test_every_option_is_in_the_manual() -> None:
    manual = (Path(__file__).parents[3] / "docs/pipelines.md").read_text()

    for processor, options in known_options().items():
        assert f"`{processor}`" in manual
        for option in msgspec.structs.fields(options):
            assert f"`{option.name}`" in manual, f"{processor}: {option.name}"


def test_every_built_in_processor_is_in_the_table_of_the_manual() -> None:
    manual = (Path(__file__).parents[3] / "docs/pipelines.md").read_text()

    table = manual.partition("| processor | what it does |\n|---|---|\n")[2].partition("\n\n")[0]
    declared = [f"| `{built_in.name}` | {built_in.description} |" for built_in in PROCESSORS]
    assert table.splitlines() == declared


# Registry.


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
