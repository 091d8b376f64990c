"""Declaration of a file by a client, before its bytes arrive, and its validation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from unicodedata import category

import msgspec

from domain.errors import FieldError

MAX_PATH_BYTES = 2048  # with batch and state it must fit into an index entry (2704 bytes)
MAX_NAME_UNITS = 255  # of UTF-16: what NTFS, APFS and exFAT allow for one name
MAX_METADATA_ENTRIES = 32
MAX_METADATA_BYTES = 4096
MAX_SIZE = 2**53 - 1  # the largest integer every JSON reader keeps whole (RFC 8259 section 6)

PARTS_KEY = "tus-concat"
"""Metadata key of a concatenated upload, with the value of its Upload-Concat header.

It has a limit of its own: the URLs of a thousand partial uploads exceed that of metadata.
"""

HEADER_KEY = "tus-metadata"
"""Metadata key with the whole Upload-Metadata header, which has a limit of its own too."""

_NO_NAMES = frozenset({"", ".", ".."})  # segments of a path that name no file
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}(;.{0,200})?", re.ASCII)
_CONCATENATION = re.compile(r"[ -~]{0,65536}")
_HEADER = re.compile(r"[ -~]{0,8192}")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")


class FileDeclaration(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One file of a manifest.

    `size` is in bytes, None if it is not known yet; `checksum` is `sha256:` and 64 hex digits.
    """

    path: str
    size: int | None = None
    media_type: str | None = None
    checksum: str | None = None
    metadata: Mapping[str, str] = {}


def validate_declaration(file: FileDeclaration, *, at: str = "") -> Iterator[FieldError]:
    """Yield an error for each broken rule; `at` prefixes the field, such as `files/3/`."""
    if problem := path_error(file.path):
        yield FieldError(f"{at}path", problem)
    if file.size is not None and not 0 <= file.size <= MAX_SIZE:
        yield FieldError(f"{at}size", f"must be from 0 to {MAX_SIZE} bytes, or left out")
    if file.media_type is not None and not is_media_type(file.media_type):
        yield FieldError(f"{at}media_type", "must look like image/png")
    if file.checksum is not None and not _CHECKSUM.fullmatch(file.checksum):
        yield FieldError(f"{at}checksum", "must be sha256: followed by 64 lowercase hex digits")
    metadata = dict(file.metadata)
    concatenation, header = metadata.pop(PARTS_KEY, None), metadata.pop(HEADER_KEY, None)
    if concatenation is not None and not _CONCATENATION.fullmatch(concatenation):
        yield FieldError(f"{at}metadata", f"must have {PARTS_KEY} in printable ASCII of 64 KiB")
    if header is not None and not _HEADER.fullmatch(header):
        yield FieldError(f"{at}metadata", f"must have {HEADER_KEY} in printable ASCII of 8 KiB")
    if problem := metadata_error(metadata):
        yield FieldError(f"{at}metadata", problem)


def path_error(path: str) -> str | None:
    """Return what is wrong with the path of a file inside its batch, or None.

    A path is relative, `/` separated, printable, and cannot leave the batch.
    """
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode"
    if not path:
        return "must not be empty"
    if len(encoded) > MAX_PATH_BYTES:
        return f"must be at most {MAX_PATH_BYTES} bytes long"
    if has_control_characters(path):
        found = next(character for character in path if has_control_characters(character))
        return f"must not hold control characters (U+{ord(found):04X} is one)"
    if "\\" in path:
        return "must use / between folders"
    segments = path.split("/")
    if not _NO_NAMES.isdisjoint(segments):
        return "must be relative, without empty, . or .. segments"
    # No text has more units in UTF-16 than bytes in UTF-8: a short path has no name that is longer.
    if len(encoded) > MAX_NAME_UNITS and any(
        len(segment.encode("utf-16-le")) > 2 * MAX_NAME_UNITS for segment in segments
    ):
        return f"must have names of at most {MAX_NAME_UNITS} characters (UTF-16 units)"
    return None


def is_media_type(text: str) -> bool:
    """Return whether the text has the form of a media type, with or without parameters."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def metadata_error(metadata: Mapping[str, str]) -> str | None:
    """Return what is wrong with user metadata, or None."""
    if len(metadata) > MAX_METADATA_ENTRIES:
        return f"must have at most {MAX_METADATA_ENTRIES} entries"
    text = "".join((*metadata, *metadata.values()))
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "must be valid Unicode"
    if size > MAX_METADATA_BYTES:
        return f"must hold at most {MAX_METADATA_BYTES} bytes in all"
    if has_control_characters(text):
        return "must not hold control characters"
    return None


def has_control_characters(text: str) -> bool:
    """Return whether the text has characters that make it look different from what it is.

    These are control and surrogate characters, line and paragraph separators, and those that
    override, embed or isolate the direction of text (Unicode Standard Annex 9). Marks and
    joiners, which names in many languages need, are allowed.
    """
    if text.isprintable():  # false for each of these characters, and fast
        return False
    return any(
        category(character) in ("Cc", "Cs", "Zl", "Zp")
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
        for character in text
    )


def sanitize(text: str, limit: int = 200) -> str:
    """Replace characters that must not be stored, so that a rejection can still name the text."""
    shown = "".join(
        "\ufffd" if has_control_characters(character) else character for character in text
    )
    return shown[:limit]
