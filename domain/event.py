"""The shape every domain event shares."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Event(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True, gc=False
):
    """Something that happened: when (UTC) and by whom, both chosen by the caller.

    `by` names a principal: `key:<id>`, `worker:<name>`, `orchestrator`. Nothing in an event leads
    back to it, so that the collector of cycles need not look at millions of them.
    """

    at: datetime
    by: str


def topic_of(event: Event | type[Event]) -> str:
    """The stable tag an event is stored and streamed under, such as `upload.registered`."""
    return str(event.__struct_config__.tag)
