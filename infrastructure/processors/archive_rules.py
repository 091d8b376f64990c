"""Rules for every archive: allowed names of members, and limits on what it unpacks to.

A name is judged as the strictest system would read it: both separators, drive letters, names that
are equal after Unicode normalisation or without regard to case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import dropwhile
from typing import Any, Protocol, TypeAlias

CHUNK_BYTES = 256 * 1024
MAX_HARMLESS_BYTES = 1024 * 1024  # bytes below which no ratio makes a bomb
MAX_LINK_TARGET_BYTES = 4096  # bytes of a link
MEMBER_OVERHEAD_BYTES = (
    4096  # bytes of headers and padding that a member may have, besides its content
)

ArchiveLimits: TypeAlias = dict[str, Any]
MemberPath: TypeAlias = tuple[str, ...]

_DRIVE = re.compile(r"[A-Za-z]:")


class ArchiveRefused(Exception):
    """The archive breaks a rule of the pipeline, or extractors would not agree on it."""


class LeadsOutside(ArchiveRefused):
    """A name or link leads out of the folder into which the archive is extracted."""


class LimitExceeded(ArchiveRefused):
    """The archive holds more than the pipeline allows."""


class Broken(Exception):
    """The archive cannot be read: truncated or malformed."""


class Reader(Protocol):
    """Sequential source of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


class ArchiveCounter:
    """Count of what was found, held against the limits. Raises ArchiveRefused, LimitExceeded.

    With `outer`, it counts an archive inside of another: its bytes are added to the outer one's,
    its names are not judged, because extracting the outer archive does not extract it.
    """

    def __init__(self, limits: ArchiveLimits, outer: ArchiveCounter | None = None) -> None:
        self.limits = limits
        self.depth: int = 0 if outer is None else outer.depth + 1
        self.found = {"members": 0, "bytes": 0, "nested": 0, "encrypted": 0, "links": 0}
        self._outer = outer
        self._stream = 0  # bytes that a decompressor returned
        self._inside = 0  # bytes of archives inside, unpacked
        self._names: list[MemberPath] = []
        self._links: dict[MemberPath, str] = {}

    def inside(self) -> ArchiveCounter:
        """Return a counter for an archive inside of this one."""
        if self.depth >= self.limits["max_depth"]:
            depth = self.limits["max_depth"]
            raise LimitExceeded(f"archives are inside of each other more than {depth} deep")
        return ArchiveCounter(self.limits, self)

    def member(self, names: Iterable[str], *also: str) -> None:
        """Count a member with every name that a reader may give it; `also` are only judged."""
        if self._outer is None:
            for name in (*names, *also):
                require_inside(name, "a member is named")
                if ".." in _parts(name):
                    raise ArchiveRefused(
                        f"a member is named {name!r}, which goes up: readers differ"
                    )
            self._names += map(_key, names)
        self.found["members"] += 1
        self.require("members", "max_members", "members")

    def link(self, names: Iterable[str], targets: Iterable[str]) -> None:
        """Judge a symbolic link, whose target counts from the folder that the link is in."""
        self.found["links"] += 1
        if self._outer is not None:
            return
        for name in names:
            self._links[_key(name)] = name
            for target in targets:
                if ".." in dropwhile("..".__eq__, _parts(target)):
                    raise ArchiveRefused(f"a link leads back and forth: {target!r}")
                require_inside(
                    target, "a link leads to", name.replace("\\", "/").rpartition("/")[0]
                )

    def hard_link(self, targets: Iterable[str]) -> None:
        """Judge a hard link, whose target counts from the top of the archive."""
        self.found["links"] += 1
        if self._outer is None:
            for target in targets:
                if ".." in dropwhile("..".__eq__, _parts(target)):
                    raise ArchiveRefused(f"a link leads back and forth: {target!r}")
                require_inside(target, "a link leads to")
                self._names.append(_key(target))  # nor may it be reached through another link

    def encrypted(self, name: str) -> None:
        self.found["encrypted"] += 1
        if self._outer is None and not self.limits["allow_encrypted"]:
            raise ArchiveRefused(f"{name!r} is encrypted: its content cannot be checked")

    def content(self, size: int) -> None:
        """Count bytes that an extractor writes, before they are unpacked."""
        self._count(content=size)

    def stream(self, size: int) -> None:
        """Count bytes of a decompressed stream: content and everything around it."""
        self._count(stream=size)

    def _count(self, content: int = 0, stream: int = 0, inside: int = 0) -> None:
        before = self._total
        self.found["bytes"] += content
        self._stream += stream
        self._inside += inside
        if self._outer is not None:
            self._outer._count(inside=self._total - before)
            return
        most = self.limits["max_bytes"]
        spare = MEMBER_OVERHEAD_BYTES * (self.found["members"] + 16)
        if self.found["bytes"] > most or self._total > most + spare:
            raise LimitExceeded(f"more than {most} bytes when unpacked")
        packed, ratio = self.limits["packed"], self.limits["max_ratio"]
        if self._total > MAX_HARMLESS_BYTES and self._total > ratio * packed:
            raise LimitExceeded(
                f"{packed} bytes unpack to more than {self._total}: over {ratio} times as much"
            )

    @property
    def _total(self) -> int:
        return max(self.found["bytes"], self._stream) + self._inside

    def nested(self) -> None:
        self.found["nested"] += 1
        self.require("nested", "max_nested", "archives inside")

    def end(self) -> None:
        """Refuse members below a link: the folder that they extract to is undefined."""
        for name in self._names if self._links else ():
            for length in range(1, len(name)):
                if (link := self._links.get(name[:length])) is not None:
                    raise ArchiveRefused(f"a member lies behind the link {link!r}")

    def require_members(self, announced: int) -> None:
        """Refuse an archive that announces too many members before any is read."""
        if announced > self.limits["max_members"]:
            raise LimitExceeded(f"more than {self.limits['max_members']} members")

    def require(self, counted: str, limit: str, what: str) -> None:
        if self.found[counted] > self.limits[limit]:
            raise LimitExceeded(f"more than {self.limits[limit]} {what}")


def require_inside(path: str, description: str, folder: str = "") -> None:
    """Raise LeadsOutside for a path out of the folder into which the archive is extracted."""
    parts = _parts(path)
    if not path or "\0" in path or parts[0] == "" or _DRIVE.match(path):
        raise LeadsOutside(f"{description} {path!r}, which lies outside of it")
    depth = 0
    for part in (*_parts(folder), *parts):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            raise LeadsOutside(f"{description} {path!r}, which lies outside of it")


def _parts(path: str) -> list[str]:
    """Components by both separators; trailing blanks do not make `..` something else (Windows)."""
    parts = path.replace("\\", "/").split("/")
    return [".." if part.rstrip(" ") == ".." else part for part in parts]


def _key(path: str) -> MemberPath:
    """The components of a path, equal for what some file system takes for the same path."""
    parts = (part for part in _parts(path) if part not in ("", "."))
    return tuple(unicodedata.normalize("NFC", part).casefold().rstrip(" .") for part in parts)
