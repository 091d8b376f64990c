"""Result or error of a step, as plain values of limited size.

Child processes that run steps import this module, so it imports little.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from application.pipeline import PermanentError, Quarantine
from domain.upload.aggregate import MAX_ERROR_TYPE, MAX_MESSAGE

MAX_RESULT_BYTES = 64 * 1024  # of one step's result, as JSON
MAX_ARTIFACT_BYTES = 16 * 1024 * 1024


class BadResult(PermanentError):
    """A processor returned something that cannot be recorded."""


def encode_result(result: Any) -> bytes:
    """Encode a step's result as JSON. Raises BadResult."""
    try:
        encoded = msgspec.json.encode(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadResult(f"the result is not JSON: {error}") from None
    if not isinstance(result, dict) or len(encoded) > MAX_RESULT_BYTES:
        raise BadResult(f"a result is an object of at most {MAX_RESULT_BYTES} bytes of JSON")
    return encoded


class ErrorKind(StrEnum):
    """Consequence of an error: another attempt, failure, or quarantine."""

    RETRYABLE = "retryable"
    PERMANENT = "permanent"
    QUARANTINE = "quarantine"


class StepError(msgspec.Struct, frozen=True):
    """Error as plain values: its type, its message, and its consequence."""

    error_type: str
    message: str
    kind: ErrorKind = ErrorKind.RETRYABLE


class StepFailure(Exception):
    """Raised for a step that failed in another process, or crashed that process."""

    def __init__(self, error: StepError) -> None:
        super().__init__(error.message)
        self.error = error


def describe_error(error: BaseException) -> StepError:
    """Describe an error without trusting its class: methods may raise or return huge texts."""
    if issubclass(type(error), StepFailure):
        assert isinstance(error, StepFailure)
        return error.error
    return StepError(_error_type(error), _message(error), _kind(error))


def storable_text(text: str, max_characters: int) -> str:
    """Return the first characters of a text, with those that UTF-8 cannot encode replaced."""
    return str.encode(str.__getitem__(text, slice(max_characters)), "utf-8", "replace").decode()


def _kind(error: BaseException) -> ErrorKind:
    # By its type: `isinstance` reads the error's `__class__`, which may raise.
    if issubclass(type(error), PermanentError):
        return ErrorKind.PERMANENT
    if issubclass(type(error), Quarantine):
        return ErrorKind.QUARANTINE
    return ErrorKind.RETRYABLE


def _error_type(error: BaseException) -> str:
    """Return the `error_type` that the class itself declares, else the name of the class.

    Recorded error types never change: a class that is renamed declares its former name.
    """
    try:
        kind = type(error)
        declared = type.__getattribute__(kind, "__dict__").get("error_type", kind.__name__)
        return storable_text(declared, MAX_ERROR_TYPE)
    except BaseException:
        return "Exception"


def _message(error: BaseException) -> str:
    for text_of in (str, repr):
        try:
            if text := text_of(error):
                return storable_text(text, MAX_MESSAGE)
        except BaseException:  # noqa: S112 - whatever it raises: the next way is tried
            continue
    return "the error has no message that can be read"
