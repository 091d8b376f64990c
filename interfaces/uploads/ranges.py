"""Range requests, as RFC 9110 section 14 has them: one range of bytes, or everything."""

from __future__ import annotations

import re

import msgspec

_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


class Unsatisfiable(Exception):
    """The range lies outside of the content."""


class Part(msgspec.Struct, frozen=True):
    """Bytes from `start` up to `end` (exclusive) of `size`."""

    start: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def part_of(header: str | None, size: int) -> Part | None:
    """What a Range header asks for; None for everything.

    A header in another unit, of several ranges or of no sense is ignored, as section 14.2 has
    it. Raises Unsatisfiable.
    """
    found = _ONE_RANGE.fullmatch(header or "")
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= size or start == end:
        raise Unsatisfiable(f"bytes */{size}")
    return Part(start, end, size)
