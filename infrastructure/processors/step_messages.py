"""Protocol between a worker and a step process: frames of msgpack on two pipes."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from application.pipeline import StepInput
from application.worker.step_result import StepError

LENGTH_BYTES = 4  # bytes, big-endian, in front of each frame
MAX_FRAME_BYTES = 17 * 1024 * 1024  # bytes: the largest artifact, and what is around it


class StepMessage(msgspec.Struct, frozen=True, tag=True):
    """One frame."""


# From the worker.


class Load(StepMessage, frozen=True):
    """Import the processor of this name. The response is Loaded or Failed."""

    name: str


class Perform(StepMessage, frozen=True):
    """Run the processor; `memory` is in bytes. The last answer is Finished or Failed."""

    name: str
    subject: StepInput
    options: dict[str, Any]
    memory: int


class Chunk(StepMessage, frozen=True):
    """The response to Read: the next bytes; None at the end."""

    data: bytes | None


class Attached(StepMessage, frozen=True):
    """The response to Attach."""


class RequestFailed(StepMessage, frozen=True):
    """The response to Read or Attach if the worker had an error."""

    error: StepError


Order: TypeAlias = Load | Perform
Reply: TypeAlias = Chunk | Attached | RequestFailed

# From the process.


class Loaded(StepMessage, frozen=True):
    """The processor was imported."""


class Read(StepMessage, frozen=True):
    """Ask for the next chunk of reader number `reader`, which covers `start` to `end`."""

    reader: int
    start: int
    end: int | None


class CloseReader(StepMessage, frozen=True):
    """Close this reader; there is no response."""

    reader: int


class ProgressMade(StepMessage, frozen=True):
    """Progress of the step; there is no response."""

    done: int
    total: int | None


class Attach(StepMessage, frozen=True):
    """Keep an artifact."""

    name: str
    content: bytes


class Finished(StepMessage, frozen=True):
    """The step's result as JSON; `clean` is whether the process may run another step."""

    result: bytes
    clean: bool


class Failed(StepMessage, frozen=True):
    """The error that ended the step, or the import."""

    error: StepError
    clean: bool


Report: TypeAlias = Loaded | Read | CloseReader | ProgressMade | Attach | Finished | Failed

_encoder = msgspec.msgpack.Encoder()
decode_order = msgspec.msgpack.Decoder(Order | Reply).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


def frame(message: StepMessage) -> bytes:
    """Encode a message with its length. Raises TypeError for values unknown to msgpack."""
    encoded = _encoder.encode(message)
    return len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded
