"""Pipelines: named lists of steps, and the port that performs one step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Protocol
from uuid import UUID

import msgspec
from msgspec import Meta

from domain.retry import RetryPolicy
from domain.upload.events import TRANSFER


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Step of a pipeline: its processor, its options, and its timeout in seconds.

    `concurrency` is how many uploads one worker has in this step at once; without it, as many as
    the worker runs. `memory` is the bytes of memory that the process of a Python step may use;
    without it, the setting `step_memory`.
    """

    processor: str
    name: str = ""
    timeout: Annotated[float, Meta(gt=0)] = 300.0
    concurrency: Annotated[int, Meta(ge=1)] | None = None
    memory: Annotated[int, Meta(ge=16 * 1024 * 1024)] | None = None
    options: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """The name that events and views show."""
        return self.name or self.processor


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Steps in the order they run, and how often all of them are tried again.

    Raises ValueError if two steps have the same name: their results could not be distinguished.
    """

    steps: tuple[Step, ...]
    retry_policy: RetryPolicy | None = None

    def __post_init__(self) -> None:
        taken = {TRANSFER}
        for step in self.steps:
            if step.label in taken:
                raise ValueError(f"the name {step.label!r} is taken: give the step another `name`")
            taken.add(step.label)


class StepInput(msgspec.Struct, frozen=True, kw_only=True):
    """The upload a step works on; `step` is the label of the step."""

    upload: UUID
    batch: UUID
    owner: str
    path: str
    size: int
    media_type: str | None
    checksum: str | None
    metadata: dict[str, str]
    attempt: int
    results: dict[str, dict[str, Any]]
    step: str = ""


class StepContext(Protocol):
    """Interface of a step: read the bytes, attach artifacts, report progress."""

    def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of the upload."""

    async def progress(self, done: int, total: int | None = None) -> None:
        """Reports progress in the step's own units; recorded at most every so often."""

    async def attach(self, name: str, content: bytes) -> None:
        """Keeps a small result file with the upload, under a name unique in the attempt."""


class Processor(Protocol):
    """The code that performs a step.

    Returns the step's result (JSON types). Raises Permanent for an error that another attempt
    would meet again, Quarantine for a dangerous file; anything else may be retried.
    """

    async def __call__(
        self, subject: StepInput, bench: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]: ...


class ReservableProcessor(Processor, Protocol):
    """A processor of which only so many can run at once."""

    def reserve(self, step: Step) -> AbstractAsyncContextManager[Processor]:
        """Wait for what the step runs on, and hold it; the wait does not count against `timeout`.

        Whatever the waiting raises is the step's error.
        """


class PermanentError(Exception):
    """The file, not the circumstances, is at fault: another attempt would fail alike."""

    error_type = "Permanent"


class Quarantine(Exception):
    """The file is dangerous: hold it back and notify the operator."""
