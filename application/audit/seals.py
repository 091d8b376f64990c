"""Log seals: signed records over ranges of the event log, their chain, and differences to it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from application.audit.merkle import SealedEntry, StoredEventRow

FIRST = bytes(32)  # `previous` of the first seal


class AuditSeal(msgspec.Struct, frozen=True, kw_only=True):
    """Signed record over the `count` events with positions in (`after`, `through`].

    `root` is that of the tree over their entries, `previous` the digest of the seal before.
    `key` is the public half (Ed25519, RFC 8032) of what signed it, `next_key` of what signs from
    the next seal on, where that changes.
    """

    number: int
    after: int
    through: int
    count: int
    root: bytes
    previous: bytes
    at: datetime
    key: bytes
    next_key: bytes | None = None
    signature: bytes = b""

    def statement(self) -> bytes:
        """Return the signed text: lines that any program can reproduce from the fields."""
        lines = (
            "uptrail seal 1",
            f"number {self.number}",
            f"after {self.after}",
            f"through {self.through}",
            f"count {self.count}",
            f"root {_text(self.root)}",
            f"previous {_text(self.previous)}",
            f"at {self.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            f"key {_text(self.key)}",
            f"next {_text(self.next_key) if self.next_key else '-'}",
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def digest(self) -> bytes:
        """SHA-256 of the statement, by which the next seal names this one."""
        return sha256(self.statement()).digest()


def _text(value: bytes) -> str:
    return b64encode(value).decode()


Signed: TypeAlias = Callable[[AuditSeal], bool]
"""True if the seal's signature is that of its key over its statement."""

Gaps: TypeAlias = Literal["nowhere", "before", "anywhere"]

Kind: TypeAlias = Literal[
    "altered",
    "removed",
    "inserted",
    "reordered",
    "list_altered",
    "seal_altered",
    "seal_missing",
    "key_unknown",
    "malformed",
]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Difference to what was sealed, with its position and seal (0: none)."""

    kind: Kind
    position: int
    seal: int
    detail: str


class SealChain:
    """Verification of a chain of seals, in their order.

    A seal is trusted if its key is. A trusted seal that names the next key makes that one trusted.
    The other direction: the first seal of a trusted key confirms the key before it, if it follows
    the seal that named it by number and digest, and that key the one before, and so on. A key that
    signs without having been named by the seal before is confirmed by none. `gaps` determines
    where seals may be absent: nowhere, before the first one given, or anywhere.
    """

    def __init__(
        self, trusted: Collection[bytes], signed: Signed, *, gaps: Gaps = "nowhere"
    ) -> None:
        self.last: AuditSeal | None = None
        self._trusted = set(trusted)
        self._signed = signed
        self._gaps = gaps
        self._untrusted: dict[bytes, AuditSeal] = {}  # by key, its first seal
        self._named_by: dict[bytes, set[bytes]] = {}  # by key, those that named it
        self._unnamed: set[bytes] = set()  # keys that took over without being named

    def append(self, seal: AuditSeal) -> Iterator[Finding]:
        """Verify the next seal and its link to the previous one; yield the findings."""
        broken = list(self._broken(seal))
        if broken:  # a broken link: later seals confirm nothing before it
            yield from self.end()
            yield from broken
        before = self.last
        if not self._signed(seal):
            detail = f"seal {seal.number} is not what its key signed"
            yield _finding("seal_altered", seal, detail)
        else:
            if before is not None and not broken and seal.number == before.number + 1:
                self._note_key_change(before, seal)
            if seal.key in self._trusted:
                self._confirm(seal.key)
                if seal.next_key is not None:
                    self._trusted.add(seal.next_key)
            else:
                self._untrusted.setdefault(seal.key, seal)
        self.last = seal

    def end(self) -> Iterator[Finding]:
        """Yield the untrusted seals; call it after the last seal."""
        untrusted, self._untrusted = self._untrusted, {}
        self._named_by.clear()
        for seal in untrusted.values():
            key = b64encode(seal.key).decode()
            detail = f"from seal {seal.number} on, the key {key} signs, which no trusted seal names"
            yield _finding("key_unknown", seal, detail)

    def _note_key_change(self, before: AuditSeal, seal: AuditSeal) -> None:
        if before.key == seal.key:
            return
        if before.next_key == seal.key:
            self._named_by.setdefault(seal.key, set()).add(before.key)
        else:
            self._unnamed.add(seal.key)

    def _confirm(self, key: bytes) -> None:
        """Trust the earlier seals of the keys that named this one."""
        for earlier in self._named_by.pop(key, ()):
            if earlier not in self._unnamed:
                self._untrusted.pop(earlier, None)
                self._confirm(earlier)

    def _broken(self, seal: AuditSeal) -> Iterator[Finding]:
        before = self.last
        number, through, digest = (
            (before.number, before.through, before.digest) if before else (0, 0, FIRST)
        )
        if seal.number <= number:
            yield _finding("seal_altered", seal, f"seal {seal.number} comes after seal {number}")
        elif seal.number > number + 1:
            if self._gaps == "nowhere" or (self._gaps == "before" and before is not None):
                yield _finding("seal_missing", seal, missing_seals(number + 1, seal.number - 1))
            if seal.after < through:
                detail = f"seal {seal.number} covers positions that seal {number} covers"
                yield _finding("seal_altered", seal, detail)
        elif (seal.previous, seal.after) != (digest, through):
            yield _finding(
                "seal_altered", seal, f"seal {seal.number} does not follow seal {number}"
            )


class ExternalSeal(NamedTuple):
    """A seal as it was kept outside of the database: its number, digest and last position."""

    number: int
    digest: bytes
    through: int


class ExternalSeals:
    """Comparison of seals with those that were kept outside, both in the order of numbers."""

    def __init__(self, kept: Iterator[ExternalSeal]) -> None:
        self._kept = kept
        self._next = next(kept, None)

    def compare(self, seal: AuditSeal) -> Iterator[Finding]:
        while self._next is not None and self._next.number < seal.number:
            self._next = next(self._kept, None)  # the chain check reports missing seals
        if self._next is not None and self._next.number == seal.number:
            if self._next.digest != seal.digest:
                detail = f"seal {seal.number} is another than the one that was kept outside"
                yield _finding("seal_altered", seal, detail)
            self._next = next(self._kept, None)

    def rest(self, last: AuditSeal | None) -> Iterator[Finding]:
        """Yield a finding if seals were kept that come after the last one."""
        number, through = (last.number, last.through) if last else (0, 0)
        end = number
        while self._next is not None:
            end, self._next = max(end, self._next.number), next(self._kept, None)
        if end > number:
            missing = missing_seals(number + 1, end)
            detail = f"{missing} at the end: made, kept outside, and gone from here"
            yield Finding(kind="seal_missing", position=through + 1, seal=number + 1, detail=detail)


def missing_seals(first: int, last: int) -> str:
    return f"seal {first} is missing" if first == last else f"seals {first} to {last} are missing"


def _finding(kind: Kind, seal: AuditSeal, detail: str) -> Finding:
    return Finding(kind=kind, position=seal.after + 1, seal=seal.number, detail=detail)


_DETAILS: dict[Kind, str] = {
    "altered": "the event is not the one that was sealed here",
    "removed": "the event that was sealed here is gone",
    "inserted": "the event was put in after the seal",
    "reordered": "the event was sealed at another position, or stands at another one now",
}


class _Difference(msgspec.Struct):
    """Sealed entry and current entry at one position."""

    sealed: SealedEntry | None = None
    found: SealedEntry | None = None
    what: str = ""


class SealDiff:
    """Comparison of the stored events with the entries of one seal, in the order of positions.

    Keeps the first `most` differences."""

    def __init__(self, seal: int, entries: Sequence[SealedEntry], most: int) -> None:
        self._seal = seal
        self._sealed = entries
        self._most = most
        self._next = 0  # of the sealed entries
        self._differing: dict[int, _Difference] = {}

    @property
    def full(self) -> bool:
        """True if the maximum of findings is reached."""
        return len(self._differing) >= self._most

    def take(self, stored: StoredEventRow) -> None:
        entry = stored.entry
        self._pass(entry.position)
        if self.full:
            return
        expected = self._sealed[self._next] if self._next < len(self._sealed) else None
        if expected is not None and expected.position == entry.position:
            self._next += 1
            if expected.digest == entry.digest:
                return
        else:
            expected = None
        what = f"{stored.topic}, version {stored.version} of {stored.stream}"
        self._differing[entry.position] = _Difference(expected, entry, what)

    def findings(self) -> Iterator[Finding]:
        """Yield the differences by position; call it after the last event."""
        self._pass(None)
        differing = self._differing
        sealed = {entry.digest for entry in self._sealed}
        arrived = {one.found.digest for one in differing.values() if one.found is not None}
        for position in sorted(differing):
            one = differing[position]
            if one.found is None:
                kind: Kind = "removed"
                moved = one.sealed is not None and one.sealed.digest in arrived
            else:
                kind = "altered" if one.sealed is not None else "inserted"
                moved = one.found.digest in sealed
            yield self._finding("reordered" if moved else kind, position, one.what)

    def _pass(self, position: int | None) -> None:
        """Note the sealed events before this position as removed."""
        while self._next < len(self._sealed) and not self.full:
            expected = self._sealed[self._next]
            if position is not None and expected.position >= position:
                return
            self._differing[expected.position] = _Difference(expected)
            self._next += 1

    def _finding(self, kind: Kind, position: int, what: str) -> Finding:
        detail = f"{_DETAILS[kind]} ({what})" if what else _DETAILS[kind]
        return Finding(kind=kind, position=position, seal=self._seal, detail=detail)
