"""`media-type`: what the bytes are, against what was declared and what is allowed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from application.pipeline import Permanent, Subject, Workbench
from infrastructure.processors.options import Options, read
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


class MediaTypeOptions(Options, frozen=True, kw_only=True):
    """`allow` and `deny` are patterns such as `image/*`, held against what was sniffed.

    `strict` makes any disagreement with what was declared an error.
    """

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    strict: bool = False


class MediaTypeRefused(Permanent):
    """The file is of a type that the pipeline does not allow."""


class MediaTypeMismatch(Permanent):
    """The bytes are not of the type that was declared."""


class ImageTooLarge(Permanent):
    """The image would unpack to more pixels than are allowed."""


async def media_type(subject: Subject, bench: Workbench, options: dict[str, Any]) -> dict[str, Any]:
    """Returns `sniffed`, `declared`, whether they agree, and the pixels of an image.

    Unless the pipeline is `strict`, only a file that is declared as an image, or named like one,
    must be one: bytes of another kind under that name are a mistake or an attack. Raises the
    errors above.
    """
    chosen = read(MediaTypeOptions, options)
    head = await _head(bench)
    sniffed = sniff(head)
    _refuse(sniffed, chosen)
    agrees = _agree(sniffed, subject.media_type)
    expected = raster_type(subject.path, subject.media_type)
    if expected is not None and not sniffed.startswith("image/"):
        raise MediaTypeMismatch(f"this is no {expected}: {_described(sniffed)}")
    if chosen.strict and not agrees:
        raise MediaTypeMismatch(f"declared as {subject.media_type}: {_described(sniffed)}")
    result: dict[str, Any] = {"sniffed": sniffed, "declared": subject.media_type, "agrees": agrees}
    if size := pixels(head, sniffed):
        if size[0] * size[1] > chosen.max_pixels:
            raise ImageTooLarge(f"{size[0]} x {size[1]} pixels are more than {chosen.max_pixels}")
        result |= {"width": size[0], "height": size[1]}
    return result


async def _head(bench: Workbench) -> bytes:
    head = bytearray()
    async for chunk in bench.read(0, HEAD):
        head += chunk
    return bytes(head)


def _refuse(sniffed: str, chosen: MediaTypeOptions) -> None:
    allow = chosen.allow
    if any(fnmatchcase(sniffed, pattern) for pattern in chosen.deny):
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
