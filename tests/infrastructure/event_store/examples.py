"""One example of every event class with every field given, for the golden bytes."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec

from application.append import Causation
from domain.access.events import (
    ErasureFinished,
    ErasureImported,
    ErasureRequested,
    KeyCreated,
    KeyImported,
    KeyRevoked,
    LoginIssued,
    LoginUsed,
    SessionClosed,
    SessionOpened,
)
from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchErased,
    BatchExpired,
    BatchPaused,
    BatchPrioritized,
    BatchProgressed,
    BatchRenamed,
    BatchReopened,
    BatchResumed,
    BatchRetryRequested,
    BatchSealed,
    BatchStarted,
    UploadsAdded,
)
from domain.batch.state import Outcome
from domain.catalogue import EVENT_CLASSES, DomainEvent
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
    UploadExpired,
    UploadFailed,
    UploadQuarantined,
    UploadQueued,
    UploadRegistered,
    UploadRejected,
    UploadReleased,
)
from domain.upload.state import UploadState
from domain.webhook.events import (
    WebhookAdded,
    WebhookChanged,
    WebhookDisabled,
    WebhookEnabled,
    WebhookFilter,
    WebhookRemoved,
    WebhookSecretRotated,
    WebhookTestRequested,
)
from tests.builders import BATCH, NOON, later

CAUSE = Causation(
    UUID("019b0000-0000-7000-8000-00000000000c"),
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
POLICY = RetryPolicy(attempts=5, first_delay=2.0, longest_delay=60.0, factor=3.0)
COUNTS = {UploadState.RECEIVED: 1, UploadState.COMPLETED: 2, UploadState.FAILED: 1}
SUM = "sha256:" + "0f" * 32
BY = "key:alice"

_WRITTEN: tuple[DomainEvent, ...] = (
    UploadRegistered(
        at=NOON,
        by=BY,
        batch=BATCH,
        owner="acme",
        path="fotos/sommer/möwe.jpg",
        size=100,
        media_type="image/jpeg",
        checksum=SUM,
        metadata={"camera": "x100"},
        pipeline="default",
        retry_policy=POLICY,
    ),
    UploadRejected(
        at=NOON,
        by=BY,
        batch=BATCH,
        owner="acme",
        path="a.exe",
        size=5,
        media_type="application/x-msdownload",
        code="type_not_allowed",
        message="executables are not accepted",
    ),
    SizeDeclared(at=NOON, by=BY, size=100),
    FileProgressed(
        at=later(0.5), by=BY, phase="checksum", attempt=2, done=50, total=100, percent=50.0
    ),
    TransferInterrupted(at=NOON, by=BY, received=60, reason="connection reset"),
    BytesLost(at=NOON, by=BY, recorded=60, stored=40),
    FileReceived(at=NOON, by=BY, size=100, blob="uploads/a"),
    UploadQueued(at=NOON, by="orchestrator"),
    AttemptStarted(at=NOON, by="worker:one", number=1, worker="worker:one"),
    AttemptFailed(
        at=NOON,
        by="worker:one",
        number=1,
        step="checksum",
        error_type="OSError",
        message="disk error",
        permanent=True,
        duration=1.25,
        retry_at=later(30),
    ),
    AttemptAbandoned(
        at=NOON, by="orchestrator", number=2, worker="worker:one", reason="no heartbeat"
    ),
    AttemptSucceeded(
        at=NOON,
        by="worker:two",
        number=3,
        results={"thumbnail": {"width": 64, "ratio": 1.5, "notes": ["a", None, True]}},
        artifacts={"thumbnail.webp": "artifacts/a/thumbnail.webp"},
        duration=0.75,
    ),
    UploadCompleted(at=NOON, by="worker:two"),
    UploadFailed(at=NOON, by="worker:one", step="checksum", message="disk error"),
    UploadQuarantined(at=NOON, by="worker:one", step="antivirus", reason="EICAR"),
    RetryRequested(at=NOON, by=BY),
    UploadReleased(at=NOON, by=BY, reason="the scanner is wrong"),
    UploadCancelled(at=NOON, by=BY, reason="no longer needed"),
    UploadExpired(at=NOON, by="orchestrator"),
    UploadErased(at=NOON, by=BY),
    BatchStarted(
        at=NOON,
        by=BY,
        owner="acme",
        label="holiday",
        pipeline="default",
        retry_policy=POLICY,
        priority=3,
        failure_threshold=0.25,
        notify="https://example.org/hook",
        metadata={"album": "2026"},
        fingerprint=SUM,
    ),
    UploadsAdded(at=NOON, by=BY, count=4, bytes=400),
    BatchSealed(at=NOON, by=BY),
    BatchProgressed(
        at=NOON,
        by="orchestrator",
        counts=COUNTS,
        bytes_received=400,
        bytes_total=400,
        percent=87.5,
        through=12,
    ),
    BatchPaused(at=NOON, by=BY),
    BatchResumed(at=NOON, by=BY),
    BatchPrioritized(at=NOON, by=BY, priority=7),
    BatchRetryRequested(at=NOON, by=BY),
    BatchRenamed(at=NOON, by=BY, label="summer"),
    BatchCancelled(at=NOON, by=BY, reason="wrong folder"),
    BatchExpired(at=NOON, by="orchestrator"),
    BatchReopened(at=NOON, by=BY, reason="retry of failed uploads"),
    BatchCompleted(
        at=NOON,
        by="orchestrator",
        outcome=Outcome.COMPLETED_WITH_FAILURES,
        counts=COUNTS,
        duration=61.5,
    ),
    BatchErased(at=NOON, by=BY),
    WebhookAdded(
        at=NOON,
        by=BY,
        owner="acme",
        subscription=WebhookFilter(
            url="https://example.org/hook",
            events=("batch.completed", "upload.failed"),
            label="holiday",
            on_request=True,
            description="to the album",
        ),
        secret=UUID(int=1),
    ),
    WebhookChanged(
        at=NOON,
        by=BY,
        subscription=WebhookFilter(url="https://example.org/", events=("batch.completed",)),
    ),
    WebhookSecretRotated(at=NOON, by=BY, secret=UUID(int=2), earlier_until=NOON),
    WebhookTestRequested(at=NOON, by=BY),
    WebhookDisabled(at=NOON, by="orchestrator", reason="it answered 410"),
    WebhookEnabled(at=NOON, by=BY),
    WebhookRemoved(at=NOON, by=BY),
    KeyCreated(
        at=NOON,
        by=BY,
        key="0123456789abcdef",
        owner="acme",
        scope="uploader",
        secret_digest=SUM,
        label="camera",
        batch=BATCH,
        expires_at=later(60),
    ),
    KeyImported(
        at=NOON,
        by="migration",
        key="0123456789abcdef",
        owner="acme",
        scope="uploader",
        secret_digest=SUM,
        created_at=NOON,
        label="camera",
        batch=BATCH,
        expires_at=later(60),
        revoked_at=later(30),
    ),
    KeyRevoked(at=NOON, by=BY),
    LoginIssued(
        at=NOON,
        by=BY,
        principal=BY,
        owner="acme",
        scope="viewer",
        batch=BATCH,
        expires_at=later(60),
    ),
    LoginUsed(at=NOON, by=BY),
    SessionOpened(
        at=NOON,
        by=BY,
        principal=BY,
        owner="acme",
        scope="viewer",
        batch=BATCH,
        expires_at=later(60),
    ),
    SessionClosed(at=NOON, by=BY),
    ErasureRequested(at=NOON, by=BY, owner="acme", reason="asked for by letter"),
    ErasureImported(
        at=NOON,
        by="migration",
        owner="acme",
        requested_by=BY,
        requested_at=NOON,
        reason="asked for by letter",
        finished_at=later(60),
        batches=2,
        uploads=3,
    ),
    ErasureFinished(at=NOON, by="eraser", batches=2, uploads=3, keys=(UUID(int=1),)),
)


def example_of(kind: Any) -> Any:
    """Return an example value of a type: of an event class, an event with every field given."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return example_of(arguments[0])
    if origin in (Union, UnionType):
        return example_of(next(one for one in arguments if one is not type(None)))
    if origin is tuple:
        return (example_of(arguments[0]),)
    if origin is not None:  # a mapping
        return {example_of(arguments[0]): example_of(arguments[1])}
    if issubclass(kind, Enum):
        return next(iter(kind))
    if issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind, include_extras=True)
        return kind(**{name: example_of(hints[name]) for name in kind.__struct_fields__})
    return _VALUES[kind]


_VALUES: dict[Any, Any] = {
    str: "text",
    int: 1,
    float: 1.5,
    bool: True,
    bytes: b"bytes",
    Any: "anything",
    UUID: UUID(int=1),
    datetime: NOON,
}

EXAMPLES = _WRITTEN + tuple(
    example_of(event_class)
    for event_class in EVENT_CLASSES.values()
    if event_class not in {type(event) for event in _WRITTEN}
)
"""An event type without an example above gets one of its field types; its bytes are pinned too."""

# Events that got a field later: the example above shows the bytes from before.
GROWN: dict[str, DomainEvent] = {
    "batch.progressed with arrival": BatchProgressed(
        at=NOON,
        by="orchestrator",
        counts=COUNTS,
        bytes_received=400,
        bytes_total=400,
        percent=87.5,
        through=12,
        arrived_at=later(-3),
    ),
    "batch.paused with reason": BatchPaused(at=NOON, by=BY, reason="11 uploads failed"),
}
