"""`media-type`: compares the detected type of a file with the declared and allowed types."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from application.pipeline import PermanentError, StepContext, StepInput
from infrastructure.processors import media_types
from infrastructure.processors.decoder_pool import DecoderLimits, DecoderPool
from infrastructure.processors.input_file import copy_ends, copy_to_file
from infrastructure.processors.options import Options, parse_options
from infrastructure.processors.signatures import HEAD_BYTES, conclude, second_range, sniff

MIB = 1024 * 1024

MAX_COPY_BYTES = 256 * MIB  # bytes of a picture that are copied to count its pixels
MAX_PIXELS = 250_000_000  # phones have sensors of 200 megapixels
IDENTIFY = "infrastructure.processors.libmagic_child:identify"
MEASURE = "infrastructure.processors.thumbnail_child:measure"
IDENTIFY_LIMITS = DecoderLimits(memory=512 * MIB, seconds=5)
MEASURE_LIMITS = DecoderLimits(memory=1024 * MIB, seconds=20)

# What makes a browser run a part of an XML document: elements of scripts and of pages, handlers of
# events, addresses that are scripts, stylesheets, and entities that could hide any of these.
_SCRIPT = re.compile(
    r"<(?:[\w.-]+:)?(?:script|iframe|foreignobject|embed|object|handler)\b|\bon[a-z]+\s*=|javascript:"
    r"|http://www\.w3\.org/1999/xhtml|<\?xml-stylesheet|<!entity",
    re.IGNORECASE,
)
_TOLD_FROM_ZIP = (
    media_types.OFFICE,
    media_types.OPEN_DOCUMENT,
    "application/epub+zip",
)  # zip files that always show it
_OVERLAP = 64  # characters of the longest marker that could be cut by the end of a chunk


class MediaTypeOptions(Options, frozen=True, kw_only=True):
    """`allow` and `deny` are patterns such as `image/*` for the detected type.

    `strict` makes any disagreement with what was declared an error.
    """

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    strict: bool = False


class MediaTypeRefused(PermanentError):
    """The file is of a type that the pipeline does not allow."""


class MediaTypeMismatch(PermanentError):
    """The bytes are not of the type that was declared."""


class ImageTooLarge(PermanentError):
    """The image would unpack to more pixels than are allowed."""


class MediaType:
    """The processor; the caller that opened the pool of decoders closes it."""

    def __init__(self, decoders: DecoderPool) -> None:
        self._decoders = decoders

    async def __call__(
        self, subject: StepInput, bench: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Return `sniffed`, `declared`, whether they agree, and the pixels of an image.

        Unless the pipeline is `strict`, only a file that is declared as an image, or named like
        one, must be one: bytes of another kind under that name are a mistake or an attack. An
        image whose pixels cannot be counted passes, with the reason as `unmeasured`. Raises the
        errors above, DecoderLost, BadOption.
        """
        chosen = parse_options(MediaTypeOptions, options)
        claims = _claims(subject)
        sniffed = await self._sniff(subject, bench, claims)
        await _require_allowed(sniffed, claims, chosen, bench)
        agrees = _agree(sniffed, subject.media_type)
        expected = media_types.declared_image_type(subject.path, subject.media_type)
        if expected is not None and not sniffed.startswith("image/"):
            raise MediaTypeMismatch(f"this is no {expected}: {_described(sniffed)}")
        if chosen.strict and not agrees:
            raise MediaTypeMismatch(f"declared as {subject.media_type}: {_described(sniffed)}")
        result = {"sniffed": sniffed, "declared": subject.media_type, "agrees": agrees}
        return result | await self._measure(sniffed, subject, bench, chosen)

    async def _sniff(self, subject: StepInput, bench: StepContext, claims: Sequence[str]) -> str:
        head = await _bytes(bench, 0, HEAD_BYTES)
        other = second_range(head, subject.size)
        second = await _bytes(bench, *other) if other else b""
        if found := sniff(head, second, subject.size, claims):
            return found
        decoded = await self._decoders.run(IDENTIFY, head, {}, IDENTIFY_LIMITS)
        verdict = decoded.answer.get("type", media_types.UNKNOWN)
        if not isinstance(verdict, str):
            verdict = media_types.UNKNOWN
        return conclude(verdict, head, subject.size, claims)

    async def _measure(
        self, sniffed: str, subject: StepInput, bench: StepContext, chosen: MediaTypeOptions
    ) -> dict[str, Any]:
        """Return `width` and `height` of an image, found by the decoder that makes thumbnails."""
        if sniffed not in media_types.RASTER.values():
            return {}
        with TemporaryDirectory(prefix="uptrail-media-type-") as folder:
            source = Path(folder) / "source"
            if subject.size > MAX_COPY_BYTES:
                await copy_ends(bench, source, subject.size, MAX_COPY_BYTES // 2)
            else:
                await copy_to_file(bench, source)
            order = {"type": sniffed}
            decoded = await self._decoders.run(MEASURE, source, order, MEASURE_LIMITS)
        match decoded.answer:
            case {"size": [int(width), int(height)]}:
                if width * height > chosen.max_pixels:
                    message = f"{width} x {height} pixels are more than {chosen.max_pixels}"
                    raise ImageTooLarge(message)
                return {"width": width, "height": height}
            case {"broken": str(reason)} | {"limit": str(reason)} | {"failed": str(reason)}:
                return {"unmeasured": reason}
        return {"unmeasured": "the decoder's answer makes no sense"}


def _claims(subject: StepInput) -> list[str]:
    """Return the canonical types of a file's declared type and extension, where known."""
    declared = media_types.canonical(subject.media_type or "")
    named = media_types.TEXT_NAMES.get(media_types.extension(subject.path), "")
    return [
        claim
        for claim in (declared, named)
        if claim not in ("", media_types.UNKNOWN, media_types.TEXT)
    ]


async def _bytes(bench: StepContext, start: int, end: int) -> bytes:
    return b"".join([chunk async for chunk in bench.read(start, end)])


async def _require_allowed(
    sniffed: str, claims: Sequence[str], chosen: MediaTypeOptions, bench: StepContext
) -> None:
    """Raise MediaTypeRefused where `deny` names a file's type or `allow` does not.

    `deny` holds for everything that a file may be taken for: its type, the containers that the
    type is kept in, and, for types that bytes do not determine, its declared type and extension.
    """
    possible = list(media_types.lineage(sniffed))
    if sniffed == media_types.UNKNOWN or media_types.is_text(sniffed):
        possible += [
            claim
            for claim in claims
            if sniffed == media_types.UNKNOWN or media_types.is_text(claim)
        ]
    for found in possible:
        if any(media_types.matches(found, pattern) for pattern in chosen.deny):
            raise MediaTypeRefused(f"files of type {found} are denied")
    denies_pages = any(media_types.matches(media_types.HTML, pattern) for pattern in chosen.deny)
    if (
        denies_pages
        and media_types.XML in possible
        and (sniffed == media_types.XHTML or await _has_scripts(bench))
    ):
        raise MediaTypeRefused(
            f"files of type {media_types.HTML} are denied: this {sniffed} runs scripts"
        )
    allow = chosen.allow
    if allow is not None and not any(_allows(pattern, sniffed) for pattern in allow):
        raise MediaTypeRefused(f"files of type {sniffed} are not among {', '.join(allow)}")


def _allows(pattern: str, sniffed: str) -> bool:
    """Return whether a pattern admits a type: by itself, or as the container that holds it.

    What runs in a browser or a shell is text as well, but never allowed as mere text.
    """
    if media_types.matches(sniffed, pattern):
        return True
    return sniffed not in media_types.ACTIVE and any(
        media_types.matches(kind, pattern) for kind in media_types.lineage(sniffed)
    )


async def _has_scripts(bench: StepContext) -> bool:
    """Return whether an XML document has anything in it that a browser would run."""
    decoder: codecs.IncrementalDecoder | None = None
    rest = ""
    async for chunk in bench.read():
        if decoder is None:
            wide = chunk.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in chunk[:4]
            little = not chunk.startswith(b"\xfe\xff") and chunk[:1] != b"\0"
            name = ("utf-16-le" if little else "utf-16-be") if wide else "latin-1"
            decoder = codecs.getincrementaldecoder(name)("replace")
        text = rest + decoder.decode(chunk)
        if _SCRIPT.search(text):
            return True
        rest = text[-_OVERLAP:]
    return False


def _agree(sniffed: str, declared: str | None) -> bool:
    """Return whether the bytes may be of the declared type; few types can be excluded."""
    if declared is None:
        return True
    kind = media_types.canonical(declared)
    if kind == media_types.TEXT and sniffed in (
        media_types.HTML,
        media_types.XHTML,
        media_types.SVG,
    ):
        return False  # it is text, but a browser would run what is in it
    if sniffed == media_types.ZIP and kind.startswith(_TOLD_FROM_ZIP):
        return False
    if kind == media_types.UNKNOWN or media_types.are_compatible(sniffed, kind):
        return True
    if sniffed in (media_types.EMPTY, media_types.UNKNOWN):
        return kind not in media_types.RASTER.values()
    if sniffed in (media_types.TEXT, media_types.SVG, media_types.XML):
        return not kind.startswith(("image/", "audio/", "video/"))
    if sniffed == media_types.ZIP:
        return kind.startswith("application/")
    return False


def _described(sniffed: str) -> str:
    return "it is empty" if sniffed == media_types.EMPTY else f"its bytes are {sniffed}"
