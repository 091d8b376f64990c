"""Runs a pipeline over one upload, step after step, and says how that ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import msgspec

from application.pipeline import Permanent, Pipeline, Processor, Quarantine, Step, Subject
from application.ports.blobs import BlobStore
from application.worker.attempt import Attempt
from application.worker.bench import Bench, Reported
from application.worker.places import Places
from application.worker.source import Source
from application.worker.verdict import Failed, Held, Passed, Verdict, failure_of
from domain.errors import Superseded

MAX_RESULT = 64 * 1024  # bytes of JSON


class UnknownPipeline(Permanent):
    """The upload asks for a pipeline that this worker does not have."""


class UnknownProcessor(Permanent):
    """The pipeline names a processor that this worker does not have."""


class BadResult(Permanent):
    """A processor returned something that cannot be recorded."""


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

    async def through(
        self, pipelines: Mapping[str, Pipeline], processors: Mapping[str, Processor]
    ) -> Verdict:
        """Every error is a verdict; only cancellation and Superseded escape."""
        results: dict[str, dict[str, Any]] = {}
        self._label = "pipeline"
        try:
            for step in self._pipeline(pipelines).steps:
                self._label = step.label
                # Waiting for a place is not part of the step: its time has not begun.
                async with self._places.in_step(self.attempt.upload.pipeline, step):
                    results[step.label] = await self._perform(step, processors, results)
        except Superseded:
            raise
        except Permanent as error:
            return Failed(failure_of(self._label, error, permanent=True))
        except Quarantine as error:
            return Held(failure_of(self._label, error, permanent=True))
        except Exception as error:
            return Failed(failure_of(self._label, error))
        return Passed(results, self.attempt.artifacts)

    async def record_progress(self, interval: float) -> None:
        """Records where the step is, if it has lasted, and moved. Raises Superseded."""
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
        self._since, self._recorded = asyncio.get_running_loop().time(), None
        self._bench = bench
        try:
            # A copy: the options belong to the pipeline, and a processor may change what it gets.
            options = deepcopy(step.options)
            result = await _in_time(step, processor(subject(attempt, results), bench, options))
        finally:
            self._bench = None
        if self._recorded is not None and bench.reported != self._recorded:
            await attempt.progress(step.label, bench.reported.done, bench.reported.total)
        return _checked(result)

    def _pipeline(self, pipelines: Mapping[str, Pipeline]) -> Pipeline:
        name = self.attempt.upload.pipeline
        if (pipeline := pipelines.get(name)) is None:
            known = ", ".join(sorted(pipelines))
            raise UnknownPipeline(f"there is no pipeline {name!r}; known are {known}")
        return pipeline


def subject(attempt: Attempt, results: dict[str, dict[str, Any]]) -> Subject:
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


def _checked(result: Any) -> dict[str, Any]:
    """Return the result as it will be stored: a copy that the processor cannot change any more."""
    try:
        encoded = msgspec.json.encode(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadResult(f"the result is not JSON: {error}") from None
    if not isinstance(result, dict) or len(encoded) > MAX_RESULT:
        raise BadResult(f"a result is an object of at most {MAX_RESULT} bytes of JSON")
    return msgspec.json.decode(encoded, type=dict[str, Any])
