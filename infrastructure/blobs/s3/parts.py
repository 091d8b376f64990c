"""How large the parts of a multipart upload are, and what is known of those that are stored.

Limits of Amazon S3, which others copy: 1 to 10,000 parts, each 5 MiB to 5 GiB, the last one of any
size ("Amazon S3 multipart upload limits").
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from itertools import pairwise

import msgspec

MIB = 1024 * 1024
SMALLEST = 5 * MIB
LARGEST = 5 * 1024 * MIB
MOST = 10_000

_STEP = 64 * 1024  # bytes that sizes are rounded up to


class Part(msgspec.Struct, frozen=True):
    """One stored part, as the store lists it."""

    number: int
    size: int
    etag: str


class Parts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parts of a blob so far: `count` of them, `size` bytes in all.

    A number is never used twice: some stores keep both parts then. `last` is the highest that was
    used, `skipped` are the ranges (first, last) of those whose parts do not count, which a killed
    process sent and nobody acknowledged. `seal` chains the ETags of those that count, so that a
    part which was lost or replaced is found out.
    """

    upload: str | None = None
    count: int = 0
    size: int = 0
    seal: str = ""
    last: int = 0
    skipped: tuple[tuple[int, int], ...] = ()

    def plus(self, part: Part) -> Parts:
        """With one more part, whose number is higher than any before."""
        skipped = self.past(part.number - 1).skipped
        seal = sha256(f"{self.seal}{part.etag}".encode()).hexdigest()
        size = self.size + part.size
        return Parts(self.upload, self.count + 1, size, seal, part.number, skipped)

    def past(self, number: int) -> Parts:
        """The same parts, going on behind this number."""
        if number <= self.last:
            return self
        skipped = (*self.skipped, (self.last + 1, number))
        return msgspec.structs.replace(self, last=number, skipped=skipped)

    def among(self, listed: Iterable[Part]) -> list[Part]:
        """Those of the listed parts that count, in their order."""
        return [
            part
            for part in sorted(listed, key=lambda part: part.number)
            if part.number <= self.last
            and not any(first <= part.number <= last for first, last in self.skipped)
        ]

    def steps(self, listed: Iterable[Part]) -> list[Parts] | None:
        """What the parts amount to after none, one, two and so on; None unless these are they."""
        steps = [Parts(self.upload)]
        for part in self.among(listed):
            steps.append(steps[-1].plus(part))
        found = steps[-1]
        same = (found.count, found.size, found.seal) == (self.count, self.size, self.seal)
        return steps if same else None


NO_PARTS = Parts()


def size_of_next(parts: Parts, largest: int) -> int:
    """How large the next part is to be, in bytes, so that a blob of `largest` bytes fits.

    Sizes grow evenly from the smallest: small files then need little memory and only very large
    ones large parts (a blob of 1 TiB ends with parts of 205 MiB, one of 10 GiB with 21 MiB).
    """
    left = MOST - parts.last
    growth = max(0, -(-2 * (largest - MOST * SMALLEST) // MOST**2))
    size = SMALLEST + growth * (parts.last + 1)
    planned = left * (size + SMALLEST + growth * MOST) // 2
    missing = largest - parts.size
    if left > 0 and planned < missing:  # the largest size allowed was raised meanwhile
        size = max(size, -(-missing // left))
    return min(-(-size // _STEP) * _STEP, LARGEST)


def evenly(size: int, largest: int) -> list[tuple[int, int]]:
    """Splits bytes into ranges (start, end) of about one length, none longer than `largest`."""
    count = max(1, -(-size // largest))
    return list(pairwise(size * n // count for n in range(count + 1)))
