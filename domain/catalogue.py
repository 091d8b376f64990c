"""All event types: the union of the classes, and the class of each topic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias, get_args

from domain.access.events import AccessEvent
from domain.batch.events import BatchEvent
from domain.event import Event, UnknownEvent, topic_of
from domain.upload.events import UploadEvent
from domain.webhook.events import WebhookEvent

DomainEvent: TypeAlias = UploadEvent | BatchEvent | WebhookEvent | AccessEvent


def _topic_of_declared(event_class: type[DomainEvent]) -> str:
    """Return the topic. Raises TypeError for a class without `event_type`."""
    if "declaration" not in vars(event_class):
        name = f"{event_class.__module__}.{event_class.__qualname__}"
        raise TypeError(f"{name} is not declared: decorate it with `event_type`")
    return topic_of(event_class)


EVENT_CLASSES: Mapping[str, type[DomainEvent]] = MappingProxyType(
    {_topic_of_declared(event): event for event in get_args(DomainEvent)}
)
"""The class of each topic, in the order of the unions."""


def _concrete_classes(base: type[Event]) -> Iterator[type[Event]]:
    """Yield the classes without subclasses: the others only share fields."""
    for event_class in base.__subclasses__():
        if event_class.__subclasses__():
            yield from _concrete_classes(event_class)
        elif event_class is not UnknownEvent:
            yield event_class


def _require_complete() -> None:
    """Raise TypeError for an event class that is in no union."""
    for event_class in _concrete_classes(Event):
        if event_class not in EVENT_CLASSES.values():
            name = f"{event_class.__module__}.{event_class.__qualname__}"
            raise TypeError(f"{name} is not in the union of the events of its aggregate")


_require_complete()
