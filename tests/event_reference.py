"""Write docs/events.md from the declarations of the events."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path
from typing import Any, get_type_hints

from domain.catalogue import EVENT_CLASSES
from domain.event import Classification, Event

MANUAL = Path(__file__).parents[1] / "docs" / "events.md"

_HEAD = """# Events

This page is generated from the classes in `domain/*/events.py`: `.venv/bin/python -m
tests.event_reference` writes it, a test compares it. Every event also has `at` (UTC) and `by` (the
principal). Fields marked * are personal: they are encrypted with the key of the owner, and blank
after an erasure. An event with "yes" can be chosen by a webhook.

| type | label | webhooks | fields | meaning |
|---|---|---|---|---|
"""


def reference() -> str:
    """Return the page."""
    return _HEAD + "".join(_rows())


def _rows() -> Iterator[str]:
    for topic, event in EVENT_CLASSES.items():
        declared = event.declaration
        delivered = "yes" if declared.delivered else ""
        meaning = (getdoc(event) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        fields = ", ".join(_fields(event))
        yield f"| `{topic}` | {declared.label} | {delivered} | {fields} | {meaning} |\n"


def _fields(event: type[Event]) -> Iterator[str]:
    hints: dict[str, Any] = get_type_hints(event, include_extras=True)
    for name in event.__struct_fields__:
        if name not in Event.__struct_fields__:
            marks = getattr(hints[name], "__metadata__", ())
            yield f"`{name}`" + ("*" if Classification.PERSONAL in marks else "")


if __name__ == "__main__":
    MANUAL.write_text(reference())
