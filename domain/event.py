"""The common shape of domain events, and what is declared about each where it is defined."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from types import MappingProxyType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
)
from typing import get_type_hints as resolve_hints

import msgspec

T = TypeVar("T")


class Classification(Enum):
    """Classification of a field by whether it may hold personal data.

    Personal fields are encrypted with the owner's key, which an erasure destroys. Everything else
    stays readable for ever.
    """

    PERSONAL = "personal"
    PUBLIC = "public"


Personal: TypeAlias = Annotated[T, Classification.PERSONAL]
"""A field that is encrypted, and blank after an erasure: "", None or {}, by its type."""

Public: TypeAlias = Annotated[T, Classification.PUBLIC]
"""A field that may hold text, but never personal data: it outlives an erasure."""


Icon: TypeAlias = Literal[
    "waiting",
    "queued",
    "transfer",
    "processing",
    "paused",
    "retry",
    "stopped",
    "done",
    "failed",
    "refused",
    "danger",
    "gone",
]
Tone: TypeAlias = Literal["quiet", "active", "good", "warn", "bad"]


class Declaration(msgspec.Struct, frozen=True):
    """Everything that is known about an event type beyond its fields; see `event_type`.

    `personal` has the personal fields, each with the value that stands in its place in the clear.
    """

    topic: str
    label: str
    icon: Icon
    tone: Tone
    details: str
    delivered: bool
    progress: bool
    opens: bool
    personal: Mapping[str, Any]


class Event(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True, gc=False
):
    """A recorded fact, with its time (UTC) and principal, both supplied by the caller.

    `by` is a principal such as `key:<id>`, `worker:<name>` or `orchestrator`. No event holds a
    reference cycle, so the garbage collector does not track them (there may be millions).
    """

    declaration: ClassVar[Declaration]

    at: datetime
    by: Public[str]


class UnknownEvent(Event, frozen=True, kw_only=True, tag=False):
    """An event of a type, or of a version of a type, that only a later version of Uptrail knows.

    `content` is the stored JSON object without its encrypted fields. It is never written.
    """

    topic: str
    content: bytes


E = TypeVar("E", bound=Event)


def event_type(
    label: str,
    *,
    icon: Icon = "waiting",
    tone: Tone = "quiet",
    details: str = "",
    delivered: bool = False,
    progress: bool = False,
    opens: bool = False,
) -> Callable[[type[E]], type[E]]:
    """Declare an event type; every event class needs this decorator, and a tag.

    The page shows `label` with this icon and tone, and `details`: text with fields in braces, as
    `{reason}` or `{size:bytes}` (formats: `js/history/event-styles.js`). A part in brackets is left
    out if one of its fields is empty: `[{label}, ]pipeline {pipeline}`.

    A `delivered` event may be chosen by webhooks. `progress`
    marks an event that only reports progress and is never delivered. An event
    that `opens` an owner's data is refused while that owner is being erased.

    Raises TypeError for a text field that is neither `Personal` nor `Public`, and for details that
    name a field which the event does not have.
    """

    def declare(event_class: type[E]) -> type[E]:
        if delivered and progress:
            raise TypeError(f"{event_class.__name__}: progress is never delivered to webhooks")
        for name in re.findall(r"\{(\w+)", details):
            if name not in event_class.__struct_fields__:
                raise TypeError(f"{event_class.__name__}: the details name {name}, not a field")
        event_class.declaration = Declaration(
            topic=str(event_class.__struct_config__.tag),
            label=label,
            icon=icon,
            tone=tone,
            details=details,
            delivered=delivered,
            progress=progress,
            opens=opens,
            personal=MappingProxyType(_personal_fields(event_class)),
        )
        return event_class

    return declare


def topic_of(event: Event | type[Event]) -> str:
    """Return the stable tag an event is stored and streamed under, such as `upload.registered`."""
    if isinstance(event, UnknownEvent):
        return event.topic
    return event.declaration.topic


def event_fields(event: Event) -> dict[str, Any]:
    """Return the fields of an event as plain JSON types; of an unknown one those in the clear."""
    fields: dict[str, Any] = (
        msgspec.json.decode(event.content)
        if isinstance(event, UnknownEvent)
        else msgspec.to_builtins(event)
    )
    return fields


def _personal_fields(event_class: type[Event]) -> dict[str, Any]:
    personal: dict[str, Any] = {}
    for name, hint in resolve_hints(event_class, include_extras=True).items():
        if get_origin(hint) is ClassVar:
            continue
        match _classification(hint):
            case Classification.PERSONAL:
                personal[name] = _blank(hint.__origin__)
            case None if _may_hold_text(hint):
                raise TypeError(
                    f"{event_class.__name__}.{name} may hold text: annotate it as Personal[...]"
                    " (encrypted, destroyed by an erasure) or as Public[...] (readable for ever)"
                )
            case _:
                pass
    return personal


def _classification(hint: Any) -> Classification | None:
    for given in getattr(hint, "__metadata__", ()):
        if isinstance(given, Classification):
            return given
    return None


def _blank(hint: Any) -> Any:
    """Return the value of an erased field of this type."""
    if hint is str:
        return ""
    if type(None) in get_args(hint):
        return None
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return MappingProxyType({})
    raise TypeError(f"a personal field of type {hint} has no blank value: use str, None or Mapping")


def _may_hold_text(hint: Any) -> bool:
    if hint in (str, bytes, Any, object):
        return True
    origin = get_origin(hint)
    if origin is Annotated:
        return _may_hold_text(hint.__origin__)
    if origin in (Union, UnionType) or isinstance(origin, type):
        return any(_may_hold_text(argument) for argument in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        fields = resolve_hints(hint, include_extras=True).values()
        return any(_may_hold_text(field) for field in fields if get_origin(field) is not ClassVar)
    return isinstance(hint, type) and issubclass(hint, Mapping | list | tuple | set | frozenset)
