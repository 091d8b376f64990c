"""The upload aggregate: decisions say what happens next, or refuse."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any

from domain.errors import NotNow, OutOfRange, Superseded
from domain.ids import is_part
from domain.retry import GiveUp, RetryAt
from domain.upload.events import (
    TRANSFER,
    AttemptAbandoned,
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
    UploadReleased,
)
from domain.upload.evolution import Evolving
from domain.upload.failure import MAX_MESSAGE, Failure
from domain.upload.state import INCOMING, UploadState


class Upload(Evolving, frozen=True, kw_only=True, tag_field="type", tag="upload"):
    """One file on its way, and what may happen to it next."""

    # Decide: the transfer.

    def declare_size(self, size: int, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        self._require(*INCOMING)
        if self.size == size:
            return ()
        if self.size is not None:
            raise NotNow(f"the size is already declared as {self.size} bytes")
        if size < self.received:
            raise OutOfRange(f"{self.received} bytes have arrived, more than {size}")
        return (SizeDeclared(at=at, by=by, size=size),)

    def progress_transfer(self, received: int, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """Bytes up to `received` are stored; saying it twice changes nothing."""
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

    def report_loss(self, stored: int, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        self._require(*INCOMING)
        if not 0 <= stored < self.received:
            raise OutOfRange(f"{stored} bytes stored are not fewer than {self.received} recorded")
        return (BytesLost(at=at, by=by, recorded=self.received, stored=stored),)

    def receive(self, size: int, blob: str, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """Every byte is stored under `blob`."""
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
        """The error is recorded as it was; the policy says whether there is another attempt."""
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
        """The worker is gone; the upload is queued again and no attempt is used up."""
        self._require_attempt(number)
        return (self._abandoned(reason, at=at, by=by),)

    def lose_worker(
        self, number: int, reason: str, *, max_losses: int, at: datetime, by: str
    ) -> tuple[UploadEvent, ...]:
        """The worker is gone without a word. Loss number `max_losses` fails the upload.

        A file that takes its worker down each time would otherwise be given to workers for ever.
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
        """`results` are copied: the processors that made them may keep and change them."""
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

    # Decide: what people ask for.

    def request_retry(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        self._require(UploadState.FAILED)
        return (RetryRequested(at=at, by=by),)

    def release(self, reason: str, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """A quarantined file is good after all: to run the pipeline again would hold it again."""
        self._require(UploadState.QUARANTINED)
        return UploadReleased(at=at, by=by, reason=reason), UploadCompleted(at=at, by=by)

    def cancel(self, reason: str, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        if self.state.ended:
            raise NotNow(f"the upload is already {self.state}")
        cancelled = UploadCancelled(at=at, by=by, reason=reason)
        if self.worker is not None:
            return self._abandoned(reason, at=at, by=by), cancelled
        return (cancelled,)

    def join(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """The bytes of this part are in an upload now; joining it twice changes nothing."""
        if not is_part(self.id):
            raise NotNow("only parts are joined")
        if self.state is UploadState.COMPLETED:
            return ()
        self._require(UploadState.RECEIVED)
        return (UploadCompleted(at=at, by=by),)

    def expire(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        """Nobody went on with it; of a part also: nobody joined it."""
        if not (is_part(self.id) and self.state is UploadState.RECEIVED):
            self._require(*INCOMING)
        return (UploadExpired(at=at, by=by),)

    def erase(self, *, at: datetime, by: str) -> tuple[UploadEvent, ...]:
        if not self.state.ended or self.state is UploadState.ERASED:
            raise NotNow(f"the upload is {self.state}")
        return (UploadErased(at=at, by=by, attempts=self.attempt),)

    def _abandoned(self, reason: str, *, at: datetime, by: str) -> AttemptAbandoned:
        assert self.worker is not None
        return AttemptAbandoned(
            at=at, by=by, number=self.attempt, worker=self.worker, reason=reason
        )

    def _require(self, *allowed: UploadState) -> None:
        if self.state not in allowed:
            raise NotNow(f"the upload is {self.state}")

    def _require_range(self, received: int) -> None:
        if received < self.received or (self.size is not None and received > self.size):
            raise OutOfRange(f"{received} of {self.size} bytes, after {self.received}")

    def _require_attempt(self, number: int) -> None:
        if self.worker is None or self.attempt != number:
            raise Superseded(f"attempt {number} is not open: the upload is {self.state}")


def _percent(done: int, total: int | None) -> float | None:
    if total is None:
        return None
    return 100.0 if done == total else round(100 * done / total, 1)
