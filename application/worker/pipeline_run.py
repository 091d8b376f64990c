"""One run of a pipeline over one upload: its steps in order, and what each step may use."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from copy import deepcopy
from typing import Any

import msgspec

from application.errors import StorageFull
from application.pipeline import PermanentError, Pipeline, Processor, Step, StepInput
from application.ports.blobs import BlobStore
from application.worker.attempt import (
    AttemptWriter,
    PipelineOutcome,
    PipelinePassed,
    error_outcome,
)
from application.worker.step_result import MAX_ARTIFACT_BYTES, encode_result
from domain.errors import StaleAttempt
from domain.upload.aggregate import Upload

MAX_CACHED_BYTES = 256 * 1024  # size of a file that is kept in memory while its attempt lasts

_ARTIFACT_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")


class UnknownPipeline(PermanentError):
    """The upload names a pipeline that this worker does not have."""


class UnknownProcessor(PermanentError):
    """The pipeline names a processor that this worker does not have."""


class StepTimeout(Exception):
    """A step did not finish within its `timeout`."""


class StepLimiter:
    """Semaphore per limited step of a pipeline; lives as long as its worker."""

    def __init__(self) -> None:
        self._limited: dict[tuple[str, str], asyncio.Semaphore] = {}

    def acquire(self, pipeline: str, step: Step) -> AbstractAsyncContextManager[None]:
        """Return a context that holds a permit of the step; first come, first served."""
        if step.concurrency is None:
            return nullcontext()
        key = (pipeline, step.label)
        if key not in self._limited:
            self._limited[key] = asyncio.Semaphore(step.concurrency)
        return self._limited[key]


class CachedBlobReader:
    """Reader of one upload's bytes for one attempt; fetches a small file only once."""

    def __init__(self, blobs: BlobStore, upload: Upload) -> None:
        assert upload.blob is not None
        self._blobs = blobs
        self._blob = upload.blob
        self._size = upload.received
        self._cached: bytes | None = None

    async def read(self, start: int, end: int | None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` up to `end`, exclusive, in chunks. Raises BlobMissing."""
        if self._size > MAX_CACHED_BYTES:
            async for chunk in self._blobs.read(self._blob, start, end):
                yield chunk
            return
        if self._cached is None:
            # One byte more than there should be: a blob that is too long must not pass as intact.
            chunks = [chunk async for chunk in self._blobs.read(self._blob, 0, self._size + 1)]
            self._cached = b"".join(chunks)
        if wanted := self._cached[start:end]:
            yield wanted


class StepProgress(msgspec.Struct, frozen=True):
    """Last progress that a step reported, in its own units."""

    done: int = 0
    total: int | None = None


class AttemptStepContext:
    """The port `StepContext` for one step of an attempt. `reported` is the step's last report."""

    def __init__(
        self, reader: CachedBlobReader, blobs: BlobStore, upload: Upload, artifacts: dict[str, str]
    ) -> None:
        self.reported = StepProgress()
        self._reader = reader
        self._blobs = blobs
        self._upload = upload
        self._artifacts = artifacts

    def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return self._reader.read(start, end)

    async def progress(self, done: int, total: int | None = None) -> None:
        """Note the progress, which `AttemptRunner.monitor` records. Raises ValueError."""
        if done < 0 or (total is not None and done > total):
            raise ValueError(f"{done} of {total} is not progress")
        self.reported = StepProgress(done, total)

    async def attach(self, name: str, content: bytes) -> None:
        """Store an artifact. Raises PermanentError for an invalid or used name, and StorageFull."""
        if not _ARTIFACT_NAME.fullmatch(name) or ".." in name:
            raise PermanentError(f"{name!r} is no name for an artifact: use a-z 0-9 - and .")
        if name in self._artifacts:
            raise PermanentError(f"an artifact {name!r} is attached already")
        if len(content) > MAX_ARTIFACT_BYTES:
            raise PermanentError(f"artifact {name!r} is larger than {MAX_ARTIFACT_BYTES} bytes")
        blob = f"artifacts/{self._upload.id}/{self._upload.attempt}/{name}"
        self._artifacts[name] = blob  # before the bytes, so that no failure leaves an orphan
        try:
            await self._blobs.put(blob, content)
        except StorageFull:  # certain that nothing is stored: a step may go on without it
            del self._artifacts[name]
            raise


class PipelineRun:
    """One run of a pipeline over the upload of an attempt."""

    def __init__(self, attempt: AttemptWriter, blobs: BlobStore, limiter: StepLimiter) -> None:
        self.attempt = attempt
        self._blobs = blobs
        self._limiter = limiter
        self._reader = CachedBlobReader(blobs, attempt.upload)
        self._label = ""
        self._context: AttemptStepContext | None = None  # of the step that runs now
        self._recorded: StepProgress | None = None  # the last progress of this step in the log
        self._since = 0.0  # when the step began or was last recorded, on the loop's clock
        self._stale: StaleAttempt | None = None

    async def execute(
        self, pipelines: Mapping[str, Pipeline], processors: Mapping[str, Processor]
    ) -> PipelineOutcome:
        """Run the steps. Any error of a step is an outcome, SystemExit and the like included.

        Raises CancelledError where this run was cancelled, StaleAttempt where the log refused.
        """
        results: dict[str, dict[str, Any]] = {}
        self._label = "pipeline"
        try:
            for step in self._pipeline(pipelines).steps:
                self._label = step.label
                # The wait for a permit does not count against the step's timeout.
                async with self._limiter.acquire(self.attempt.upload.pipeline, step):
                    results[step.label] = await self._perform(step, processors, results)
        except BaseException as error:
            if _is_cancelled() or error is self._stale:
                raise
            return error_outcome(self._label, error)
        return PipelinePassed(results, self.attempt.artifacts)

    async def record_progress(self, interval: float) -> None:
        """Record the progress of a step that has run for `interval` seconds and has changed.

        A step that ends before that leaves no progress in the log. Raises StaleAttempt.
        """
        context, now = self._context, asyncio.get_running_loop().time()
        if context is None or now - self._since < interval or context.reported == self._recorded:
            return
        self._since, self._recorded = now, context.reported
        await self.attempt.record_progress(
            self._label, context.reported.done, context.reported.total
        )

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
        context = AttemptStepContext(self._reader, self._blobs, attempt.upload, attempt.artifacts)
        # The wait for a process does not count against the timeout either.
        async with _reserve(processor, step) as perform:
            self._since, self._recorded = asyncio.get_running_loop().time(), None
            self._context = context
            try:
                # A copy: the options belong to the pipeline, and a processor may change them.
                options = deepcopy(step.options)
                given = step_input(attempt, results, step.label)
                result = await _within_timeout(step, perform(given, context, options))
            except StepTimeout as error:
                if not getattr(processor, "optional", False):
                    raise
                result = {"skipped": str(error)}
            finally:
                self._context = None
        # As it will be stored: a copy that the processor cannot change any more.
        stored = msgspec.json.decode(encode_result(result), type=dict[str, Any])
        if self._recorded is not None and context.reported != self._recorded:
            await self._record_last(step, context.reported)
        return stored

    async def _record_last(self, step: Step, reported: StepProgress) -> None:
        try:
            await self.attempt.record_progress(step.label, reported.done, reported.total)
        except StaleAttempt as stale:
            self._stale = stale  # a StaleAttempt that a processor raises does not count
            raise

    def _pipeline(self, pipelines: Mapping[str, Pipeline]) -> Pipeline:
        name = self.attempt.upload.pipeline
        if (pipeline := pipelines.get(name)) is None:
            known = ", ".join(sorted(pipelines))
            raise UnknownPipeline(f"there is no pipeline {name!r}; known are {known}")
        return pipeline


def step_input(
    attempt: AttemptWriter, results: dict[str, dict[str, Any]], step: str = ""
) -> StepInput:
    """Return the input of the next step, with copies of the results of the steps before.

    A processor may change its input; that must not change what is recorded.
    """
    upload = attempt.upload
    return StepInput(
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


async def _within_timeout(step: Step, performing: Any) -> Any:
    clock = asyncio.timeout(step.timeout)
    try:
        async with clock:
            return await performing
    except TimeoutError:
        if not clock.expired():
            raise
        raise StepTimeout(f"{step.label} did not finish within {step.timeout:g} s") from None


def _reserve(processor: Processor, step: Step) -> AbstractAsyncContextManager[Processor]:
    # Not `isinstance`: that takes twenty microseconds for a protocol, three times a file.
    reserve: Callable[[Step], AbstractAsyncContextManager[Processor]] | None
    reserve = getattr(processor, "reserve", None)
    return nullcontext(processor) if reserve is None else reserve(step)


def _is_cancelled() -> bool:
    """Return whether the running task was cancelled: a step may raise CancelledError as well."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
