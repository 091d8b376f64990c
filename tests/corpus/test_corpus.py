"""Every file of the corpus through every step: its type, the verdict of each step, the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from application.pipeline import PermanentError
from tests.corpus.rows import ROWS, Row
from tests.infrastructure.processors.step_context import KeptProcessors, Table, subject

STEPS = ("checksum", "media-type", "thumbnail", "archive")


def verdicts(row: Row, content: bytes, kept: KeptProcessors) -> dict[str, str]:
    """The type and each step's verdict, as the rows have them; steps do not stop each other."""
    found: dict[str, str] = {}
    results: dict[str, dict[str, Any]] = {}
    for step in STEPS:
        given = subject(content, row.path, media_type=row.declared, results=results)
        try:
            results[step] = kept.perform(step, given, Table(content), {})
        except PermanentError as error:
            found[step] = f"refused: {error}"
        else:
            found[step] = _verdict(results[step])
    found["type"] = results.get("media-type", {}).get("sniffed", "")
    return found


def _verdict(result: dict[str, Any]) -> str:
    if "skipped" in result:
        return f"skipped: {result['skipped']}"
    return f"{result['width']} x {result['height']}" if "of" in result else "ok"


@pytest.fixture(scope="module")
def kept() -> Iterator[KeptProcessors]:
    kept = KeptProcessors()
    yield kept
    kept.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_a_file_of_the_corpus_gets_the_verdicts_of_its_row(row: Row, kept: KeptProcessors) -> None:
    found = verdicts(row, row.build(), kept)

    expected = {
        "checksum": row.checksum,
        "media-type": row.media_type,
        "thumbnail": row.thumbnail,
        "archive": row.archive,
        "type": row.type if row.media_type == "ok" else "",
    }
    for name, verdict in expected.items():
        kind, _, reason = verdict.partition(": ")
        assert found[name].partition(": ")[0] == kind, f"{name}: {found[name]}"
        assert reason in found[name], f"{name}: {found[name]}"


def test_the_rows_have_names_of_their_own_and_every_kind_of_verdict() -> None:
    paths = [row.path for row in ROWS]

    assert len(paths) == len(set(paths))
    assert len({row.type for row in ROWS}) >= 80
    assert {row.thumbnail.partition(":")[0] for row in ROWS} > {"skipped", "64 x 48", "48 x 64"}
