"""Stored form of events: every version stays readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from structlog.testing import capture_logs

from application.append import Causation
from domain.catalogue import DomainEvent
from domain.event import UnknownEvent, event_fields, topic_of
from domain.upload.events import SizeDeclared
from infrastructure.event_store.codec import CODEC, Codec, UnreadableEvent
from tests.builders import ALICE, NOON
from tests.infrastructure.event_store.examples import CAUSE, EXAMPLES, GROWN

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "golden" / "events.json").read_text())


def test_every_event_class_has_an_example() -> None:
    assert {type(event) for event in EXAMPLES} == set(get_args(DomainEvent))


@pytest.mark.parametrize("event", EXAMPLES, ids=topic_of)
def test_topic_and_bytes_of_an_event_never_change(event: DomainEvent) -> None:
    topic, state = CODEC.encode(event)

    assert GOLDEN[topic].encode() == state
    assert CODEC.decode(topic, state) == (event, Causation())


@pytest.mark.parametrize("name", GROWN)
def test_a_field_that_came_later_stands_beside_the_bytes_without_it(name: str) -> None:
    topic, state = CODEC.encode(GROWN[name])

    assert GOLDEN[name].encode() == state
    assert CODEC.decode(topic, state) == (GROWN[name], Causation())


def test_no_golden_event_was_dropped() -> None:
    assert set(GOLDEN) == {topic_of(event) for event in EXAMPLES} | set(GROWN)


def test_the_cause_travels_with_the_event() -> None:
    event = SizeDeclared(at=NOON, by=ALICE, size=1)

    topic, state = CODEC.encode(event, CAUSE)

    assert state == (
        b'{"event":{"type":"upload.size_declared","at":"2026-01-01T12:00:00Z","by":"key:alice",'
        b'"size":1},"command":"019b0000-0000-7000-8000-00000000000c",'
        b'"trace":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'
    )
    assert CODEC.decode(topic, state) == (event, CAUSE)


@pytest.mark.parametrize(
    ("topic", "state", "reason"),
    [
        ("upload.teleported", b"{}", "no event has the topic"),
        ("upload.size_declared", b"not json", "malformed"),
        ("upload.completed", GOLDEN["upload.expired"].encode(), "stored with the topic"),
    ],
)
def test_the_codec_refuses_foreign_events_by_name(topic: str, state: bytes, reason: str) -> None:
    with pytest.raises(UnreadableEvent, match=reason):
        CODEC.decode(topic, state)


def in_kibibytes(event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "size": event.pop("kib") * 1024}


def named_size(event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "kib": event.pop("k")}


EVOLVED = Codec({"upload.size_declared": (named_size, in_kibibytes)})


@pytest.mark.parametrize(
    ("version", "field", "value"), [(None, "k", 2), (2, "kib", 2), (3, "size", 2048)]
)
def test_an_event_of_an_older_shape_is_read_in_todays(
    version: int | None, field: str, value: int
) -> None:
    event = {"type": "upload.size_declared", "at": "2026-01-01T12:00:00Z", "by": ALICE}
    raw = {"event": {**event, field: value}} | ({"v": version} if version else {})

    decoded, _ = EVOLVED.decode("upload.size_declared", msgspec.json.encode(raw))

    assert decoded == SizeDeclared(at=NOON, by=ALICE, size=2048)


def test_an_event_whose_shape_changed_names_its_version() -> None:
    topic, state = EVOLVED.encode(SizeDeclared(at=NOON, by=ALICE, size=1), CAUSE)

    assert state.startswith(b'{"v":3,"event":')
    assert EVOLVED.decode(topic, state)[1] == CAUSE


@pytest.mark.parametrize(
    ("topic", "version"),
    [("upload.size_declared", 4), ("upload.queued", 2), ("upload.teleported", 1)],
    ids=["upcast type", "type of one version", "unknown type"],
)
def test_an_event_of_a_later_version_is_read_as_unknown(topic: str, version: int) -> None:
    content = {"type": topic, "at": "2026-01-01T12:00:00Z", "by": ALICE, "size": "2 KiB"}
    raw = {"v": version, "private": {"key": "k", "box": "b"}, "event": content, "trace": "t"}

    event, cause = EVOLVED.decode(topic, msgspec.json.encode(raw))

    assert isinstance(event, UnknownEvent)
    assert (topic_of(event), event.at, event.by, cause.traceparent) == (topic, NOON, ALICE, "t")
    assert event_fields(event) == content
    with pytest.raises(TypeError, match="cannot be written"):
        EVOLVED.encode(event)


def test_an_event_of_a_later_version_is_unknown_although_it_could_be_read() -> None:
    """A field whose unit has changed, for instance, would have another meaning."""
    topic, state = Codec().encode(SizeDeclared(at=NOON, by=ALICE, size=1))
    later = b'{"v":2,' + state.removeprefix(b"{")

    event, _ = Codec().decode(topic, later)

    assert isinstance(event, UnknownEvent)


def test_an_unknown_type_is_logged_once() -> None:
    codec = Codec()
    state = b'{"event":{"type":"batch.annotated","at":"2026-01-01T12:00:00Z","by":"key:a"}}'

    with capture_logs() as logged:
        for _ in range(3):
            codec.decode("batch.annotated", state)

    assert [entry["topic"] for entry in logged] == ["batch.annotated"]
    assert logged[0]["log_level"] == "warning"
