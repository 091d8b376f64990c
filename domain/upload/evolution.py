"""What an upload is, and what its events leave of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from domain.errors import NotNow
from domain.retry import RetryPolicy
from domain.upload.events import (
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
from domain.upload.state import UploadState


class Evolving(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about one upload, each event taken as it comes.

    `attempt` is the number of the last attempt, and `worker` holds it while it is open;
    `failures` counts against the retry policy since the upload was last queued by a person, and
    `losses` the workers that were lost while they processed it since then.
    """

    id: UUID
    version: int
    batch: UUID
    owner: str
    path: str
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
                raise NotNow("an upload begins by being registered or rejected")

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
                raise NotNow("an upload is registered once")
            case _:
                assert_never(event)

    def _moved(self, state: UploadState) -> Self:
        return replace(self, version=self.version + 1, state=state, worker=None)
