"""Runs a pipeline over one upload, step after step, and says how that ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from copy import deepcopy
from typing import Any

import msgspec

from application.pipeline import (
    Permanent,
    Pipeline,
    Processor,
    Step,
    Subject,
)
from application.ports.blobs import BlobStore
from application.worker.attempt import Attempt
from application.worker.bench import Bench, Reported
from application.worker.places import Places
from application.worker.results import encode_result
from application.worker.source import Source
from application.worker.verdict import Passed, Verdict, verdict_of
from domain.errors import StaleAttempt


class UnknownPipeline(Permanent):
    """The upload asks for a pipeline that this worker does not have."""


class UnknownProcessor(Permanent):
    """The pipeline names a processor that this worker does not have."""


class StepTimeout(Exception):
    """A step did not finish in its time."""


class Run:
    """One run of a pipeline; `step`, `reported` and `since` say where it is.

    `since` is when the step began, or was last heard of in the log, in seconds of the event
    loop's clock. A step that is over before anybody recorded its progress leaves no trace.
    """

    def __init__(self, attempt: Attempt, blobs: BlobStore, places: Places) -> None:
        self.attempt = attempt
        self._blobs = blobs
        self._places = places
        self._source = Source(blobs, attempt.upload)
        self._label = ""
        self._bench: Bench | None = None
        self._recorded: Reported | None = None
        self._since = 0.0
        self._superseded: StaleAttempt | None = None

    async def through(
        self, pipelines: Mapping[str, Pipeline], processors: Mapping[str, Processor]
    ) -> Verdict:
        """Run the steps. Whatever a step raises is a verdict, SystemExit and the like included.

        Raises CancelledError where this run was cancelled, StaleAttempt where the log refused.
        """
        results: dict[str, dict[str, Any]] = {}
        self._label = "pipeline"
        try:
            for step in self._pipeline(pipelines).steps:
                self._label = step.label
                # Waiting for a place is not part of the step: its time has not begun.
                async with self._places.in_step(self.attempt.upload.pipeline, step):
                    results[step.label] = await self._perform(step, processors, results)
        except BaseException as error:
            if _cancelled() or error is self._superseded:
                raise
            return verdict_of(self._label, error)
        return Passed(results, self.attempt.artifacts)

    async def record_progress(self, interval: float) -> None:
        """Records where the step is, if it has lasted, and moved. Raises StaleAttempt."""
        bench, now = self._bench, asyncio.get_running_loop().time()
        if bench is None or now - self._since < interval or bench.reported == self._recorded:
            return
        self._since, self._recorded = now, bench.reported
        await self.attempt.progress(self._label, bench.reported.done, bench.reported.total)

    async def _perform(
        self,
        step: Step,
        processors: Mapping[str, Processor],
        results: dict[str, dict[str, Any]],
    ) -> dict[str, Any]:
        processor = processors.get(step.processor)
        if processor is None:
            known = ", ".join(sorted(processors))
            raise UnknownProcessor(f"there is no processor {step.processor!r}; known are {known}")
        attempt = self.attempt
        bench = Bench(self._source, self._blobs, attempt.upload, attempt.artifacts)
        # Waiting for a process is not part of the step either.
        async with _reserved(processor, step) as perform:
            self._since, self._recorded = asyncio.get_running_loop().time(), None
            self._bench = bench
            try:
                # A copy: the options belong to the pipeline, and a processor may change them.
                options = deepcopy(step.options)
                given = subject(attempt, results, step.label)
                result = await _in_time(step, perform(given, bench, options))
            except StepTimeout as error:
                if not getattr(processor, "optional", False):
                    raise
                result = {"skipped": str(error)}
            finally:
                self._bench = None
        # As it will be stored: a copy that the processor cannot change any more.
        stored = msgspec.json.decode(encode_result(result), type=dict[str, Any])
        if self._recorded is not None and bench.reported != self._recorded:
            await self._record_last(step, bench.reported)
        return stored

    async def _record_last(self, step: Step, reported: Reported) -> None:
        try:
            await self.attempt.progress(step.label, reported.done, reported.total)
        except StaleAttempt as superseded:
            self._superseded = superseded  # this one counts; one that a processor raises does not
            raise

    def _pipeline(self, pipelines: Mapping[str, Pipeline]) -> Pipeline:
        name = self.attempt.upload.pipeline
        if (pipeline := pipelines.get(name)) is None:
            known = ", ".join(sorted(pipelines))
            raise UnknownPipeline(f"there is no pipeline {name!r}; known are {known}")
        return pipeline


def subject(attempt: Attempt, results: dict[str, dict[str, Any]], step: str = "") -> Subject:
    """The upload as the next step sees it, with copies of the results of the steps before.

    A processor may change what it is given; that must not change what is recorded.
    """
    upload = attempt.upload
    return Subject(
        upload=upload.id,
        batch=upload.batch,
        owner=upload.owner,
        path=upload.path,
        size=upload.received,
        media_type=upload.media_type,
        checksum=upload.checksum,
        metadata=dict(upload.metadata),
        attempt=attempt.number,
        results=deepcopy(results),
        step=step,
    )


async def _in_time(step: Step, performing: Any) -> Any:
    clock = asyncio.timeout(step.timeout)
    try:
        async with clock:
            return await performing
    except TimeoutError:
        if not clock.expired():
            raise
        raise StepTimeout(f"{step.label} did not finish within {step.timeout:g} s") from None


def _reserved(processor: Processor, step: Step) -> AbstractAsyncContextManager[Processor]:
    # Not `isinstance`: that takes twenty microseconds for a protocol, three times a file.
    reserve: Callable[[Step], AbstractAsyncContextManager[Processor]] | None
    reserve = getattr(processor, "reserve", None)
    return nullcontext(processor) if reserve is None else reserve(step)


def _cancelled() -> bool:
    """Return whether the running task was cancelled: a step may raise CancelledError as well."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
