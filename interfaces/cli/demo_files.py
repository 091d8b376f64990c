"""What the demo uploads, and the pipeline in which one of these files fails once."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import msgspec
from msgspec.structs import replace

from application.pipeline import Pipeline, Step
from domain.retry import RetryPolicy
from infrastructure.settings import DEFAULT_PIPELINE, Settings
from interfaces.cli.errors import UsageError
from interfaces.cli.walking import Found, roots_of, walk

PACKAGES = ("domain", "application", "infrastructure", "interfaces")
PROJECT = ("README.md", "CHANGELOG.md", "LICENSE", "docs", "tests")
SHOWN = ("*.py", "*.md", "*.png", "*.jpg", "*.svg", "*.css", "*.js", "*.html", "*.toml", "LICENSE")
INSTALLED = "node_modules"  # what a tool put into the tests is not ours to show
PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif")


class Chosen(msgspec.Struct, frozen=True):
    """Files by their names in the batch, and the name of the one that fails at first."""

    label: str
    roots: dict[str, Path]
    rehearsed: str


def choose(folder: Path | None) -> Chosen:
    """The folder's files, or our own. Raises UsageError where there are none."""
    if folder is None:
        roots, label = _own_files(), "Uptrail's own files"
    else:
        roots = roots_of([folder])
        label = next(iter(roots))
    return Chosen(label, roots, _one_of(roots))


def demo_settings(settings: Settings, chosen: Chosen) -> Settings:
    """The given settings with a pipeline `demo`: the default one, with a rehearsed failure.

    One process: it shows itself at work.
    """
    rehearse = Step(
        processor="rehearse", options={"fail_first_attempt_of": [_literally(chosen.rehearsed)]}
    )
    pipeline = Pipeline(steps=(*DEFAULT_PIPELINE.steps, rehearse))
    return replace(
        settings,
        processes=1,
        pipelines={**settings.pipelines, "demo": pipeline},
        retry_policy=RetryPolicy(first_delay=2.0),
    )


def _own_files() -> dict[str, Path]:
    """From a checkout: documents, pictures and code; from an installed package: its modules."""
    base = Path(__file__).parents[2]
    places = (*PACKAGES, *PROJECT) if (base / "pyproject.toml").is_file() else PACKAGES
    found = chain.from_iterable(walk({name: base / name}) for name in places)
    return {
        entry.name: entry.path
        for entry in found
        if isinstance(entry, Found)
        and INSTALLED not in entry.path.parts
        and any(fnmatchcase(entry.path.name, pattern) for pattern in SHOWN)
    }


def _one_of(roots: dict[str, Path]) -> str:
    """A picture if there is one: its attempts show more; otherwise the first file."""
    first = None
    for entry in walk(roots):
        if isinstance(entry, Found):
            if any(fnmatchcase(entry.path.name.lower(), pattern) for pattern in PICTURES):
                return entry.name
            first = first or entry.name
    if first is None:
        raise UsageError("there are no files to upload", "name another folder")
    return first


def _literally(name: str) -> str:
    """A pattern that fits this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
