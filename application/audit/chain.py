"""Follows seals in their order, and says where one is missing, changed, or nobody's we trust."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Collection, Iterator
from typing import Literal, TypeAlias

import msgspec

from application.audit.seal import FIRST, Seal

Signed: TypeAlias = Callable[[Seal], bool]
"""Whether the seal's signature is that of its key over its statement."""

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
    """Something that is not as it was sealed: at which position, and in which seal (0: none)."""

    kind: Kind
    position: int
    seal: int
    detail: str


class Chain:
    """What the seals followed so far prove.

    A seal is trusted if its key is, or if a trusted one follows that names it by its digest, and
    so on. A trusted seal that names the next key makes that one trusted as well. `gaps` says where
    seals may be left out: nowhere, before the first that comes, or anywhere.
    """

    def __init__(
        self, trusted: Collection[bytes], signed: Signed, *, gaps: Gaps = "nowhere"
    ) -> None:
        self.last: Seal | None = None
        self._trusted = set(trusted)
        self._signed = signed
        self._gaps = gaps
        self._untrusted: Seal | None = None  # the first since the last that is trusted

    def follow(self, seal: Seal) -> Iterator[Finding]:
        """What is wrong with the next seal, or between it and the one before."""
        broken = list(self._broken(seal))
        if broken:  # what comes now vouches for nothing before it
            yield from self.end()
            yield from broken
        if not self._signed(seal):
            detail = f"seal {seal.number} is not what its key signed"
            yield _finding("seal_altered", seal, detail)
        elif seal.key in self._trusted:
            self._untrusted = None
            if seal.next_key is not None:
                self._trusted.add(seal.next_key)
        elif self._untrusted is None:
            self._untrusted = seal
        self.last = seal

    def end(self) -> Iterator[Finding]:
        """What nobody vouches for; to be asked after the last seal."""
        seal, self._untrusted = self._untrusted, None
        if seal is not None:
            key = b64encode(seal.key).decode()
            detail = f"from seal {seal.number} on, the key {key} signs, which nobody trusted named"
            yield _finding("key_unknown", seal, detail)

    def _broken(self, seal: Seal) -> Iterator[Finding]:
        before = self.last
        number, through, digest = (
            (before.number, before.through, before.digest) if before else (0, 0, FIRST)
        )
        if seal.number <= number:
            yield _finding("seal_altered", seal, f"seal {seal.number} comes after seal {number}")
        elif seal.number > number + 1:
            if self._gaps == "nowhere" or (self._gaps == "before" and before is not None):
                yield _finding("seal_missing", seal, missing(number + 1, seal.number - 1))
        elif (seal.previous, seal.after) != (digest, through):
            yield _finding(
                "seal_altered", seal, f"seal {seal.number} does not follow seal {number}"
            )


def missing(first: int, last: int) -> str:
    return f"seal {first} is missing" if first == last else f"seals {first} to {last} are missing"


def _finding(kind: Kind, seal: Seal, detail: str) -> Finding:
    return Finding(kind=kind, position=seal.after + 1, seal=seal.number, detail=detail)
