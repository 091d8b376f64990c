"""The export of a history with its proofs: what each line of it holds."""

from __future__ import annotations

from typing import TypeAlias
from uuid import UUID

import msgspec

from application.audit.entries import Stored
from application.audit.seal import Seal

FORMAT = 1


class Opening(msgspec.Struct, frozen=True, kw_only=True, tag="export"):
    """The first line. `whole`: every event follows from the first seal that reaches beyond
    `after`; otherwise events of `of`, each with its own path to the root of its seal."""

    format: int = FORMAT
    of: str
    whole: bool
    after: int = 0


class SealLine(msgspec.Struct, frozen=True, kw_only=True, tag="seal", omit_defaults=True):
    """A seal, before its events. `entries`, in a whole export, are those of the seal's tree: for
    each event its position (8 bytes, big-endian) and its digest (32 bytes)."""

    seal: Seal
    entries: bytes | None = None


class EventLine(msgspec.Struct, frozen=True, kw_only=True, tag="event", omit_defaults=True):
    """An event byte for byte: `state` as text, or in `state_base64` if it is no text.

    `seal` is 0 while no seal reaches so far; `index` and `path` are its place in the tree.
    """

    position: int
    stream: UUID
    version: int
    topic: str
    state: str = ""
    state_base64: bytes | None = None
    seal: int = 0
    index: int | None = None
    path: tuple[bytes, ...] | None = None

    @property
    def stored(self) -> Stored:
        state = self.state.encode() if self.state_base64 is None else self.state_base64
        return Stored(self.stream, self.version, self.position, self.topic, state)


Line: TypeAlias = Opening | SealLine | EventLine


def event_line(
    stored: Stored,
    *,
    seal: int = 0,
    index: int | None = None,
    path: tuple[bytes, ...] | None = None,
) -> EventLine:
    """The line of a stored event."""
    state, binary = "", None
    try:
        state = stored.state.decode()
    except UnicodeDecodeError:  # nobody but a forger stored it
        binary = stored.state
    return EventLine(
        position=stored.position,
        stream=stored.stream,
        version=stored.version,
        topic=stored.topic,
        state=state,
        state_base64=binary,
        seal=seal,
        index=index,
        path=path,
    )
