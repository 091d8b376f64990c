"""Classification and safe text of the error that ended a step, also if its class misbehaves."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from application.pipeline import Permanent, Quarantine
from domain.upload.aggregate import MAX_ERROR_TYPE, MAX_MESSAGE


class Kind(StrEnum):
    """Consequence of an error: another attempt, failure, or quarantine."""

    RETRYABLE = "retryable"
    PERMANENT = "permanent"
    QUARANTINE = "quarantine"


class StepError(msgspec.Struct, frozen=True):
    """Error as plain values: the name of its class, its message, and its consequence."""

    error_type: str
    message: str
    kind: Kind = Kind.RETRYABLE


class StepFailure(Exception):
    """Raised for a step that failed in another process, or crashed that process."""

    def __init__(self, error: StepError) -> None:
        super().__init__(error.message)
        self.error = error


def describe(error: BaseException) -> StepError:
    """Describe an error without trusting its class: methods may raise or return huge texts."""
    if issubclass(type(error), StepFailure):
        assert isinstance(error, StepFailure)
        return error.error
    return StepError(_type_name(error), _message(error), _kind(error))


def _kind(error: BaseException) -> Kind:
    # By its type: `isinstance` reads the error's `__class__`, which may raise.
    if issubclass(type(error), Permanent):
        return Kind.PERMANENT
    if issubclass(type(error), Quarantine):
        return Kind.QUARANTINE
    return Kind.RETRYABLE


def _type_name(error: BaseException) -> str:
    try:
        return storable(type(error).__name__, MAX_ERROR_TYPE)
    except BaseException:
        return "Exception"


def _message(error: BaseException) -> str:
    for text_of in (str, repr):
        try:
            if text := text_of(error):
                return storable(text, MAX_MESSAGE)
        except BaseException:  # noqa: S112 - whatever it raises: the next way is tried
            continue
    return "the error has no message that can be read"


def storable(text: str, longest: int) -> str:
    """The first characters of a text; those that UTF-8 cannot hold are replaced."""
    return str.encode(str.__getitem__(text, slice(longest)), "utf-8", "replace").decode()
