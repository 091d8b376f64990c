"""Declarations of events: tags, personal fields, webhooks, and the tables derived from them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain.catalogue import EVENT_CLASSES
from domain.event import Event, Personal, Public, event_type
from domain.webhook.events import DELIVERED_TOPICS
from infrastructure.event_store.codec import (
    OPENING_TOPICS,
    PERSONAL_FIELDS,
    merge_personal,
    split_personal,
)
from tests.event_reference import reference
from tests.infrastructure.event_store.examples import EXAMPLES, example_of

MANUAL = Path(__file__).parents[2] / "docs" / "events.md"


class _Options(msgspec.Struct, frozen=True):
    size: int
    note: str = ""


class Unclassified(Event, frozen=True, kw_only=True, tag="test.unclassified"):
    count: int
    note: str


class OptionalText(Event, frozen=True, kw_only=True, tag="test.optional"):
    note: str | None = None


class MappedText(Event, frozen=True, kw_only=True, tag="test.mapped"):
    notes: Mapping[int, Mapping[str, Any]] = {}


class ListedText(Event, frozen=True, kw_only=True, tag="test.listed"):
    notes: tuple[str, ...] = ()


class StructWithText(Event, frozen=True, kw_only=True, tag="test.struct"):
    options: _Options


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (Unclassified, "note"),
        (OptionalText, "note"),
        (MappedText, "notes"),
        (ListedText, "notes"),
        (StructWithText, "options"),
    ],
)
def test_a_text_field_without_a_classification_is_refused_by_name(event: Any, field: str) -> None:
    with pytest.raises(TypeError, match=rf"{event.__name__}\.{field} may hold text: .*Personal\["):
        event_type("A test")(event)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("", "is not in the union"),
        ("@event_type('A test')", "is not in the union"),
    ],
    ids=["undeclared", "declared"],
)
def test_an_event_class_that_is_in_no_union_stops_the_import(declared: str, reason: str) -> None:
    """Nothing could read it, and mypy would name no projection that lacks it."""
    program = f"""
from domain.event import Event, event_type
{declared}
class BatchRenamed(Event, frozen=True, kw_only=True, tag="batch.renamed"):
    count: int
import domain.catalogue
"""
    failed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert failed.returncode == 1
    assert f"TypeError: __main__.BatchRenamed {reason}" in failed.stderr


class _Labelled(Event, frozen=True, kw_only=True, tag="test.labelled"):
    number: int
    moment: datetime | None = None
    name: Personal[str]
    notes: Personal[Mapping[str, Any]] = {}
    maybe: Personal[str | None] = None
    code: Public[str]


def test_a_new_personal_field_is_split_off_without_another_line() -> None:
    declared = event_type("A test")(_Labelled)

    assert dict(declared.declaration.personal) == {"name": "", "notes": {}, "maybe": None}
    assert declared.declaration.topic == "test.labelled"


def test_progress_cannot_be_delivered() -> None:
    with pytest.raises(TypeError, match="progress is never delivered"):
        event_type("A test", progress=True, delivered=True)(_Labelled)


def test_details_cannot_name_a_field_that_the_event_does_not_have() -> None:
    with pytest.raises(TypeError, match="the details name title"):
        event_type("A test", details="{name}, {title}")(_Labelled)


def test_the_personal_fields_are_those_that_erasures_have_always_destroyed() -> None:
    """A field leaves this list only where stored events are rewritten too."""
    assert {topic: dict(blanks) for topic, blanks in PERSONAL_FIELDS.items()} == {
        "upload.registered": {"path": "", "media_type": None, "checksum": None, "metadata": {}},
        "upload.rejected": {"path": "", "media_type": None, "message": ""},
        "upload.attempt_failed": {"message": ""},
        "upload.attempt_abandoned": {"reason": ""},
        "upload.attempt_succeeded": {"results": {}},
        "upload.failed": {"message": ""},
        "upload.quarantined": {"reason": ""},
        "upload.released": {"reason": ""},
        "upload.cancelled": {"reason": ""},
        "batch.started": {"label": "", "notify": None, "metadata": {}, "fingerprint": ""},
        "batch.renamed": {"label": ""},
        "batch.cancelled": {"reason": ""},
    }
    assert {"upload.registered", "batch.started"} == OPENING_TOPICS


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.declaration.topic)
def test_personal_fields_are_blank_in_the_clear_and_come_back(event: Any) -> None:
    bare, content = split_personal(event)

    for name, blank in event.declaration.personal.items():
        assert getattr(bare, name) == blank
    assert (content is None) == (not event.declaration.personal)
    assert (bare if content is None else merge_personal(bare, content)) == event


@pytest.mark.parametrize("event_class", EVENT_CLASSES.values(), ids=EVENT_CLASSES)
def test_an_example_follows_from_the_types_of_the_fields(event_class: Any) -> None:
    event = example_of(event_class)

    assert msgspec.json.decode(msgspec.json.encode(event), type=event_class) == event


def test_webhooks_choose_among_the_events_declared_as_delivered() -> None:
    delivered = {topic for topic, event in EVENT_CLASSES.items() if event.declaration.delivered}

    assert set(DELIVERED_TOPICS) == delivered
    assert {topic for topic, event in EVENT_CLASSES.items() if event.declaration.progress} == {
        "upload.file_progressed",
        "batch.progressed",
    }


def test_the_reference_in_the_manual_is_that_of_the_declarations() -> None:
    """Write it anew with `.venv/bin/python -m tests.event_reference`."""
    assert MANUAL.read_text() == reference()
