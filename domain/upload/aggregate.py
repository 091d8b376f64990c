"""The upload aggregate: decisions return the events that follow from a command, or raise."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any, Self, assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from domain.errors import InvalidState, OutOfRange, StaleAttempt
from domain.file import FileDeclaration
from domain.ids import is_partial_upload
from domain.retry import GiveUp, RetryAt, RetryPolicy
from domain.upload.events import (
    TRANSFER,
    AttemptAbandoned,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    BytesLost,
    FileProgressed,
    FileReceived,
    RetryRequested,
    SizeDeclared,
    TransferInterrupted,
    UploadCancelled,
    UploadCompleted,
    UploadErased,
    UploadEvent,
    UploadExpired,
    UploadFailed,
    UploadQuarantined,
    UploadQueued,
    UploadRegistered,
    UploadRejected,
    UploadReleased,
)
from domain.upload.state import INCOMING, UploadState

MAX_MESSAGE = 2000  # characters
MAX_ERROR_TYPE = 200  # characters


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Error of a step; after a permanent one there is no other attempt."""

    step: str
    error_type: str
    message: str
    permanent: bool = False

    @property
    def shown(self) -> str:
        """Return the message, cut to the length that an event holds."""
        return self.message[:MAX_MESSAGE]

    def as_event(
        self, number: int, *, duration: float, retry_at: datetime | None, at: datetime, by: str
    ) -> AttemptFailed:
        return AttemptFailed(
            at=at,
            by=by,
            number=number,
            step=self.step,
            error_type=self.error_type[:MAX_ERROR_TYPE],
            message=self.shown,
            permanent=self.permanent,
            duration=duration,
            retry_at=retry_at,
        )


class Upload(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="upload"):
    """One file: its facts, the decisions about it, and how each event changes the facts.

    `attempt` is the number of the last attempt, and `worker` holds it while it is open;
    `failures` counts against the retry policy since a person last queued the upload, and
    `losses` the workers that were lost while they processed it since then. No decision depends on
    `path`, which is empty in an erased upload and where only the deciding fields are loaded.
    """

    id: UUID
    version: int
    batch: UUID
    owner: str
    path: str = ""
    size: int | None = None
    media_type: str | None = None
    checksum: str | None = None
    metadata: Mapping[str, str] = {}
    pipeline: str = ""
    retry_policy: RetryPolicy = RetryPolicy()
    state: UploadState = UploadState.REGISTERED
    received: int = 0
    blob: str | None = None
    attempt: int = 0
    worker: str | None = None
    failures: int = 0
    losses: int = 0

    # Decide: the registration. That of an upload of a batch is `Batch.register_upload`.

    @staticmethod
    def register_partial(
        owner: str, batch: UUID, file: FileDeclaration, *, at: datetime, by: str
    ) -> tuple[UploadEvent, ...]:
        """Return the first event of a tus partial upload, which is stored but never counted.

        `batch` is that of the upload it is for; the partial upload of a file that stands alone
        gives its own id.
        """
        registered = UploadRegistered(
            at=at,
            by=by,
            batch=batch,
            owner=owner,
            path=file.path,
            size=file.size,
            metadata=file.metadata,
            pipeline="",
        )
        return (registered,)

    # Decide: the transfer.

    def declare_size(self, size: int, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        self._require(*INCOMING)
        if self.size == size:
            return ()
        if self.size is not None:
            raise InvalidState(f"the size is already declared as {self.size} bytes")
        if size < self.received:
            raise OutOfRange(f"{self.received} bytes have arrived, more than {size}")
        return (SizeDeclared(at=at, by=by, size=size),)

    def progress_transfer(self, received: int, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """Record that bytes up to `received` are stored; no event if that is known."""
        self._require(*INCOMING)
        self._require_range(received)
        if received == self.received:
            return ()
        percent = _percent(received, self.size)
        return (
            FileProgressed(
                at=at, by=by, phase=TRANSFER, done=received, total=self.size, percent=percent
            ),
        )

    def interrupt_transfer(
        self, received: int, reason: str, *, at: datetime, by: str
    ) -> tuple[UploadEvent, ...]:
        self._require(*INCOMING)
        self._require_range(received)
        return (TransferInterrupted(at=at, by=by, received=received, reason=reason),)

    def record_data_loss(self, stored: int, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        self._require(*INCOMING)
        if not 0 <= stored < self.received:
            raise OutOfRange(f"{stored} bytes stored are not fewer than {self.received} recorded")
        return (BytesLost(at=at, by=by, recorded=self.received, stored=stored),)

    def receive(self, size: int, blob: str, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """Record that every byte is stored in `blob`."""
        self._require(*INCOMING)
        if self.size is not None and size != self.size:
            raise OutOfRange(f"{size} bytes are stored, {self.size} were declared")
        declared = self.declare_size(size, at=at, by=by)
        return (*declared, FileReceived(at=at, by=by, size=size, blob=blob))

    # Decide: the processing.

    def queue(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        self._require(UploadState.RECEIVED)
        return (UploadQueued(at=at, by=by),)

    def start_attempt(self, worker: str, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        self._require(UploadState.QUEUED, UploadState.RETRY_SCHEDULED)
        return (AttemptStarted(at=at, by=by, number=self.attempt + 1, worker=worker),)

    def progress_step(
        self, number: int, step: str, done: int, total: int | None, *, at: datetime, by: str
    ) -> tuple[UploadEvent, ...]:
        self._require_attempt(number)
        if done < 0 or (total is not None and done > total):
            raise OutOfRange(f"{done} of {total} is not progress")
        percent = _percent(done, total)
        return (
            FileProgressed(
                at=at, by=by, phase=step, attempt=number, done=done, total=total, percent=percent
            ),
        )

    def fail_attempt(
        self,
        number: int,
        failure: Failure,
        *,
        duration: float,
        random: float,
        at: datetime,
        by: str,
    ) -> tuple[UploadEvent, ...]:
        """Record the error unchanged; the retry policy decides about another attempt."""
        self._require_attempt(number)
        decision = self.retry_policy.decide(
            self.failures + 1, permanent=failure.permanent, at=at, random=random
        )
        retry_at = decision.at if isinstance(decision, RetryAt) else None
        failed = failure.as_event(number, duration=duration, retry_at=retry_at, at=at, by=by)
        if isinstance(decision, GiveUp):
            return failed, UploadFailed(at=at, by=by, step=failure.step, message=failure.shown)
        return (failed,)

    def quarantine(
        self, number: int, failure: Failure, *, duration: float, at: datetime, by: str
    ) -> tuple[UploadEvent, ...]:
        self._require_attempt(number)
        return (
            failure.as_event(number, duration=duration, retry_at=None, at=at, by=by),
            UploadQuarantined(at=at, by=by, step=failure.step, reason=failure.shown),
        )

    def abandon_attempt(
        self, number: int, reason: str, *, at: datetime, by: str
    ) -> tuple[UploadEvent, ...]:
        """Queue the upload again without its worker; no attempt is used up."""
        self._require_attempt(number)
        return (self._abandoned(reason, at=at, by=by),)

    def lose_worker(
        self, number: int, reason: str, *, max_losses: int, at: datetime, by: str
    ) -> tuple[UploadEvent, ...]:
        """Abandon the attempt of a dead worker; loss number `max_losses` fails the upload.

        A file that crashes its worker each time would otherwise be processed for ever.
        """
        self._require_attempt(number)
        abandoned = self._abandoned(reason, at=at, by=by)
        losses = self.evolve(abandoned).losses
        if losses < max_losses:
            return (abandoned,)
        times = "a worker was lost" if losses == 1 else f"{losses} workers were lost"
        message = f"{times} while processing this file; the last was {abandoned.worker}"
        failed = UploadFailed(at=at, by=by, step="worker", message=message[:MAX_MESSAGE])
        return abandoned, failed

    def succeed_attempt(
        self,
        number: int,
        *,
        results: Mapping[str, Mapping[str, Any]],
        artifacts: Mapping[str, str],
        duration: float,
        at: datetime,
        by: str,
    ) -> tuple[UploadEvent, ...]:
        """Record the results, copied: the processors may keep and change theirs."""
        self._require_attempt(number)
        succeeded = AttemptSucceeded(
            at=at,
            by=by,
            number=number,
            results=deepcopy(dict(results)),
            artifacts=dict(artifacts),
            duration=duration,
        )
        return succeeded, UploadCompleted(at=at, by=by)

    # Decide: commands of users.

    def request_retry(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        self._require(UploadState.FAILED)
        return (RetryRequested(at=at, by=by),)

    def release(self, reason: str, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """Complete a quarantined upload; running the pipeline again would quarantine it again."""
        self._require(UploadState.QUARANTINED)
        return UploadReleased(at=at, by=by, reason=reason), UploadCompleted(at=at, by=by)

    def cancel(
        self, reason: str = "cancelled on request", *, at: datetime, by: str
    ) -> tuple[UploadEvent, ...]:
        if self.state.ended:
            raise InvalidState(f"the upload is already {self.state}")
        cancelled = UploadCancelled(at=at, by=by, reason=reason)
        if self.worker is not None:
            return self._abandoned(reason, at=at, by=by), cancelled
        return (cancelled,)

    def mark_concatenated(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """Record that the bytes are part of the concatenated upload; no event if that is known."""
        if not is_partial_upload(self.id):
            raise InvalidState("only partial uploads are concatenated")
        if self.state is UploadState.COMPLETED:
            return ()
        self._require(UploadState.RECEIVED)
        return (UploadCompleted(at=at, by=by),)

    def expire(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """Expire an unfinished transfer, or a partial upload that was not concatenated."""
        if not (is_partial_upload(self.id) and self.state is UploadState.RECEIVED):
            self._require(*INCOMING)
        return (UploadExpired(at=at, by=by),)

    def erase(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        if not self.state.ended or self.state is UploadState.ERASED:
            raise InvalidState(f"the upload is {self.state}")
        return (UploadErased(at=at, by=by, attempts=self.attempt),)

    # Evolve: take an event as fact.

    @classmethod
    def begin(cls, id: UUID, event: UploadEvent) -> Self:
        match event:
            case UploadRegistered():
                return cls(
                    id=id,
                    version=1,
                    batch=event.batch,
                    owner=event.owner,
                    path=event.path,
                    size=event.size,
                    media_type=event.media_type,
                    checksum=event.checksum,
                    metadata=event.metadata,
                    pipeline=event.pipeline,
                    retry_policy=event.retry_policy,
                )
            case UploadRejected():
                return cls(
                    id=id,
                    version=1,
                    batch=event.batch,
                    owner=event.owner,
                    path=event.path,
                    size=event.size,
                    media_type=event.media_type,
                    state=UploadState.REJECTED,
                )
            case _:
                raise InvalidState("an upload begins by being registered or rejected")

    def evolve(self, event: UploadEvent) -> Self:
        version = self.version + 1
        match event:
            case SizeDeclared(size=size):
                return replace(self, version=version, size=size)
            case FileProgressed(phase="transfer", done=done):
                return replace(self, version=version, received=done, state=UploadState.TRANSFERRING)
            case FileProgressed() | UploadReleased():
                return replace(self, version=version)
            case TransferInterrupted(received=received) | BytesLost(stored=received):
                return replace(
                    self, version=version, received=received, state=UploadState.TRANSFERRING
                )
            case FileReceived(size=size, blob=blob):
                return replace(
                    self,
                    version=version,
                    size=size,
                    received=size,
                    blob=blob,
                    state=UploadState.RECEIVED,
                )
            case AttemptStarted(number=number, worker=worker):
                return replace(
                    self,
                    version=version,
                    attempt=number,
                    worker=worker,
                    state=UploadState.PROCESSING,
                )
            case AttemptFailed():
                return replace(
                    self,
                    version=version,
                    worker=None,
                    failures=self.failures + 1,
                    state=UploadState.RETRY_SCHEDULED,
                )
            case UploadQueued():
                return self._moved(UploadState.QUEUED)
            case AttemptAbandoned(worker=worker, by=by):
                # A worker that shuts down or is preempted releases its attempt itself.
                losses = self.losses + (by != f"worker:{worker}")
                return replace(self._moved(UploadState.QUEUED), losses=losses)
            case AttemptSucceeded():
                return replace(self, version=version, worker=None)
            case RetryRequested():
                return replace(
                    self, version=version, failures=0, losses=0, state=UploadState.RECEIVED
                )
            case UploadCompleted():
                return self._moved(UploadState.COMPLETED)
            case UploadFailed():
                return self._moved(UploadState.FAILED)
            case UploadQuarantined():
                return self._moved(UploadState.QUARANTINED)
            case UploadCancelled():
                return self._moved(UploadState.CANCELLED)
            case UploadExpired():
                return self._moved(UploadState.EXPIRED)
            case UploadErased():
                return replace(
                    self._moved(UploadState.ERASED),
                    path="",
                    media_type=None,
                    checksum=None,
                    metadata={},
                )
            case UploadRegistered() | UploadRejected():
                raise InvalidState("an upload is registered once")
            case _:
                assert_never(event)

    def _moved(self, state: UploadState) -> Self:
        return replace(self, version=self.version + 1, state=state, worker=None)

    def _abandoned(self, reason: str, *, at: datetime, by: str) -> AttemptAbandoned:
        assert self.worker is not None
        return AttemptAbandoned(
            at=at, by=by, number=self.attempt, worker=self.worker, reason=reason
        )

    def _require(self, *allowed: UploadState) -> None:
        if self.state not in allowed:
            raise InvalidState(f"the upload is {self.state}")

    def _require_range(self, received: int) -> None:
        if received < self.received or (self.size is not None and received > self.size):
            raise OutOfRange(f"{received} of {self.size} bytes, after {self.received}")

    def _require_attempt(self, number: int) -> None:
        if self.worker is None or self.attempt != number:
            raise StaleAttempt(f"attempt {number} is not open: the upload is {self.state}")


def _percent(done: int, total: int | None) -> float | None:
    if total is None:
        return None
    return 100.0 if done == total else round(100 * done / total, 1)
