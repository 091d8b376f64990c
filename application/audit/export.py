"""Export of a history with its proofs, and its verification without a database."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

import msgspec

from application.audit.merkle import (
    SIZE,
    StoredEventRow,
    merkle_root,
    root_from_path,
    unpack_entries,
)
from application.audit.seals import (
    AuditSeal,
    ExternalSeal,
    ExternalSeals,
    Finding,
    Gaps,
    Kind,
    SealChain,
    SealDiff,
    Signed,
)

FORMAT = 1


class ExportHeader(msgspec.Struct, frozen=True, kw_only=True, tag="export"):
    """First line. `whole`: every event follows, from the first seal that reaches beyond `after`;
    otherwise events of `of`, each with its own path to the root of its seal."""

    format: int = FORMAT
    of: str
    whole: bool
    after: int = 0


class ExportedSeal(msgspec.Struct, frozen=True, kw_only=True, tag="seal", omit_defaults=True):
    """A seal, before its events. `entries`, in a whole export, are those of the seal's tree: for
    each event its position (8 bytes, big-endian) and its digest (32 bytes)."""

    seal: AuditSeal
    entries: bytes | None = None


class ExportedEvent(msgspec.Struct, frozen=True, kw_only=True, tag="event", omit_defaults=True):
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
    def stored(self) -> StoredEventRow:
        state = self.state.encode() if self.state_base64 is None else self.state_base64
        return StoredEventRow(self.stream, self.version, self.position, self.topic, state)


Line: TypeAlias = ExportHeader | ExportedSeal | ExportedEvent


def event_line(
    stored: StoredEventRow,
    *,
    seal: int = 0,
    index: int | None = None,
    path: tuple[bytes, ...] | None = None,
) -> ExportedEvent:
    """Return the line of a stored event."""
    state, binary = "", None
    try:
        state = stored.state.decode()
    except UnicodeDecodeError:  # not written by us
        binary = stored.state
    return ExportedEvent(
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


MAX_FINDINGS = 100  # further findings are not listed

_decode = msgspec.json.Decoder(Line).decode


class ExportVerification(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the verification of an export with `events`, of which `unsealed` have no seal yet.

    `whole`: the export claims to contain every event from seal `first_seal` to `last_seal`, which
    was made `at` and reaches position `through`.
    """

    of: str
    whole: bool
    events: int
    unsealed: int
    first_seal: int
    last_seal: int
    through: int
    at: datetime | None
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        return not self.findings


def verify_export(
    lines: Iterable[bytes],
    trusted: Collection[bytes],
    signed: Signed,
    published: Iterable[AuditSeal] = (),
) -> ExportVerification:
    """Verify the export up to MAX_FINDINGS findings. Holds the entries of one seal in memory.

    `published` are seals kept outside, in the order of their numbers.
    """
    kept = (ExternalSeal(seal.number, seal.digest, seal.through) for seal in published)
    verifier = _ExportVerifier(trusted, signed, ExternalSeals(kept))
    for number, line in enumerate(lines, start=1):
        try:
            verifier.take(_decode(line))
        except (msgspec.MsgspecError, _Misplaced) as error:
            verifier.add_finding("malformed", verifier.position, f"line {number}: {error}")
            break
        if len(verifier.findings) >= MAX_FINDINGS:
            break
    return verifier.end()


class _Misplaced(Exception):
    """A line in an invalid place."""


class _ExportVerifier:
    def __init__(self, trusted: Collection[bytes], signed: Signed, kept: ExternalSeals) -> None:
        self.findings: list[Finding] = []
        self.position = 0  # of the last event
        self._trusted = trusted
        self._signed = signed
        self._opening: ExportHeader | None = None
        self._chain = SealChain(trusted, signed)
        self._first: AuditSeal | None = None
        self._comparison: SealDiff | None = None
        self._kept = kept
        self._events = self._unsealed = 0
        self._unproven: list[int] = []  # positions of the first events without a seal

    def take(self, line: Line) -> None:
        match line:
            case ExportHeader():
                self._begin(line)
            case ExportedSeal():
                self._verify_seal(line)
            case ExportedEvent():
                self._verify_event(line)

    def add_finding(self, kind: Kind, position: int, detail: str) -> None:
        seal = self._chain.last.number if self._chain.last else 0
        self.findings.append(Finding(kind=kind, position=position, seal=seal, detail=detail))

    def end(self) -> ExportVerification:
        self._finish_seal()
        self.findings += self._chain.end()
        if self._opening is None and not self.findings:
            self.add_finding("malformed", 0, "the export has no first line")
        last = self._chain.last
        return ExportVerification(
            of=self._opening.of if self._opening else "nothing",
            whole=self._opening.whole if self._opening else False,
            events=self._events,
            unsealed=self._unsealed,
            first_seal=self._first.number if self._first else 0,
            last_seal=last.number if last else 0,
            through=last.through if last else 0,
            at=last.at if last else None,
            findings=sorted(self.findings, key=lambda finding: finding.position)[:MAX_FINDINGS],
        )

    def _begin(self, line: ExportHeader) -> None:
        if self._opening is not None or line.format != FORMAT:
            raise _Misplaced(f"an export opens once, with format {FORMAT}")
        self._opening = line
        gaps: Gaps = "anywhere" if not line.whole else "before" if line.after else "nowhere"
        self._chain = SealChain(self._trusted, self._signed, gaps=gaps)

    def _verify_seal(self, line: ExportedSeal) -> None:
        self._finish_seal()
        if self._opening is None or (line.entries is None) == self._opening.whole:
            raise _Misplaced("a seal comes after the opening, with its entries if it is whole")
        self.findings += self._chain.append(line.seal)
        self.findings += self._kept.compare(line.seal)
        self._refute_unproven(line.seal)
        self._first = self._first or line.seal
        if line.entries is not None:
            self._compare(line.seal, line.entries)

    def _refute_unproven(self, seal: AuditSeal) -> None:
        """Report events without a seal that a seal after them would have to cover."""
        for position in self._unproven:
            detail = (
                f"the event is under no seal, although seal {seal.number} follows: the event was"
                " put in, or its seal is missing"
            )
            self.add_finding("inserted", position, detail)
        self._unproven.clear()

    def _compare(self, seal: AuditSeal, packed: bytes) -> None:
        if len(packed) % SIZE:
            raise _Misplaced("the entries are cut off")
        entries = list(unpack_entries(packed))
        if (merkle_root(map(bytes, entries)), len(entries)) != (seal.root, seal.count):
            self.add_finding(
                "list_altered", seal.after + 1, f"the entries of seal {seal.number} differ"
            )
        self._comparison = SealDiff(seal.number, entries, MAX_FINDINGS)

    def _finish_seal(self) -> None:
        if self._comparison is not None:
            self.findings += self._comparison.findings()
            self._comparison = None

    def _verify_event(self, line: ExportedEvent) -> None:
        if self._opening is None or line.position <= self.position:
            raise _Misplaced("events come after the opening, in the order of their positions")
        self.position = line.position
        self._events += 1
        last = self._chain.last
        if self._opening.whole:
            if self._comparison is not None and last and line.position <= last.through:
                self._comparison.take(line.stored)
                return
            self._finish_seal()
        elif line.seal:
            self._verify_path(line, last)
            return
        self._unsealed += 1
        if last is not None and line.position <= last.through:
            self.add_finding("inserted", line.position, f"the event is not in seal {last.number}")
        elif len(self._unproven) < MAX_FINDINGS:
            self._unproven.append(line.position)

    def _verify_path(self, line: ExportedEvent, seal: AuditSeal | None) -> None:
        if seal is None or line.seal != seal.number or line.index is None or line.path is None:
            raise _Misplaced("an event names the seal before it, and its place in that")
        inside = seal.after < line.position <= seal.through
        entry = bytes(line.stored.entry)
        if inside and line.index < 0:  # the server found no entry at this position
            self.add_finding("inserted", line.position, f"the event is not in seal {seal.number}")
        elif not inside or root_from_path(entry, line.index, seal.count, line.path) != seal.root:
            self.add_finding(
                "altered", line.position, f"the event is not the one in seal {seal.number}"
            )
