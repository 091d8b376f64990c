"""`media-type`: what the bytes are, against what was declared and what is allowed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from application.pipeline import Permanent, Subject, Workbench
from infrastructure.processors.sniffing import (
    EMPTY,
    HEAD,
    RASTER,
    TEXT,
    UNKNOWN,
    pixels,
    raster_type,
    sniff,
)

MAX_PIXELS = 100_000_000


class MediaTypeRefused(Permanent):
    """The file is of a type that the pipeline does not allow."""


class MediaTypeMismatch(Permanent):
    """The bytes are not of the type that was declared."""


class ImageTooLarge(Permanent):
    """The image would unpack to more pixels than are allowed."""


async def media_type(subject: Subject, bench: Workbench, options: dict[str, Any]) -> dict[str, Any]:
    """Returns `sniffed`, `declared`, whether they agree, and the pixels of an image.

    Options: `allow` and `deny` are lists of patterns such as `image/*`, held against what was
    sniffed; `max_pixels`; `strict` makes any disagreement an error. Without it only a file
    that is declared as an image, or named like one, must be one: bytes of another kind under
    that name are a mistake or an attack. Raises the errors above.
    """
    head = await _head(bench)
    sniffed = sniff(head)
    _refuse(sniffed, options)
    agrees = _agree(sniffed, subject.media_type)
    expected = raster_type(subject.path, subject.media_type)
    if expected is not None and not sniffed.startswith("image/"):
        raise MediaTypeMismatch(f"this is no {expected}: {_described(sniffed)}")
    if options.get("strict") and not agrees:
        raise MediaTypeMismatch(f"declared as {subject.media_type}: {_described(sniffed)}")
    result: dict[str, Any] = {"sniffed": sniffed, "declared": subject.media_type, "agrees": agrees}
    if size := pixels(head, sniffed):
        most = int(options.get("max_pixels", MAX_PIXELS))
        if size[0] * size[1] > most:
            raise ImageTooLarge(f"{size[0]} x {size[1]} pixels are more than {most}")
        result |= {"width": size[0], "height": size[1]}
    return result


async def _head(bench: Workbench) -> bytes:
    head = bytearray()
    async for chunk in bench.read(0, HEAD):
        head += chunk
    return bytes(head)


def _refuse(sniffed: str, options: dict[str, Any]) -> None:
    allow, deny = options.get("allow"), options.get("deny", ())
    if any(fnmatchcase(sniffed, pattern) for pattern in deny):
        raise MediaTypeRefused(f"files of type {sniffed} are denied")
    if allow is not None and not any(fnmatchcase(sniffed, pattern) for pattern in allow):
        raise MediaTypeRefused(f"files of type {sniffed} are not among {', '.join(allow)}")


def _agree(sniffed: str, declared: str | None) -> bool:
    """Whether the bytes may be what was declared: they tell few types apart for certain."""
    if declared is None:
        return True
    kind = declared.partition(";")[0].strip().lower()
    if sniffed in (kind, EMPTY, UNKNOWN):
        return kind not in RASTER.values() or sniffed == kind
    if sniffed == TEXT:
        return not kind.startswith(("image/", "audio/", "video/")) or kind.endswith("+xml")
    if sniffed == "application/zip":
        return kind.startswith("application/")
    return kind == UNKNOWN


def _described(sniffed: str) -> str:
    return "it is empty" if sniffed == EMPTY else f"its bytes are {sniffed}"
