"""Upload-Metadata of tus 1.0.0: what it says of a file, kept so that it can be echoed exactly."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping

from domain.errors import FieldError, ValidationFailed
from domain.file import (
    HEADER_KEY,
    PARTS_KEY,
    FileDeclaration,
    has_control_characters,
    path_error,
    validate_declaration,
)

RAW = HEADER_KEY
"""The key under which a header is kept that its pairs alone would not give back byte for byte."""

CONCAT = PARTS_KEY
"""The key under which an upload that was joined from parts keeps the header that named them."""

_RESERVED = (RAW, CONCAT)

PATHS = ("relativePath", "filename", "name")
MEDIA_TYPES = ("filetype", "type", "content-type")


def parse(header: str) -> dict[str, str]:
    """The pairs of the header, and the header itself if it is not their canonical form.

    A value that is not text is left to the header, unless it would be the name of the file: that
    is refused. Raises ValidationFailed, also for what tus does not allow.
    """
    pairs: dict[str, str] = {}
    problems: dict[str, str] = {}
    seen = set()
    for element in header.split(",") if header.strip() else ():
        key, _, encoded = element.strip().partition(" ")
        if not key or not key.isascii() or key in seen:
            raise _faulty("must have unique, non-empty ASCII keys")
        seen.add(key)
        text, problem = _text(encoded)
        if problem:
            problems[key] = problem
        elif key not in _RESERVED:
            pairs[key] = text
    named = next((key for key in PATHS if key in problems or _path_under(key, pairs)), "")
    if named in problems:
        raise ValidationFailed(FieldError(f"Upload-Metadata/{named}", problems[named]))
    if header and format(pairs) != header:
        pairs[RAW] = header
    return pairs


def format(metadata: Mapping[str, str]) -> str:
    """The header to echo: as it was sent, or made from metadata that came another way."""
    if RAW in metadata:
        return metadata[RAW]
    return ",".join(
        f"{key} {b64encode(value.encode()).decode()}" if value else key
        for key, value in metadata.items()
        if key != CONCAT and key.isascii() and key.isprintable() and not set(key) & set(" ,")
    )


def declaration(metadata: dict[str, str], size: int | None, *, default: str) -> FileDeclaration:
    """The file that the metadata describes; `default` is its path where it names none.

    Raises ValidationFailed for a name that no file may have.
    """
    key = next((key for key in PATHS if _path_under(key, metadata)), None)
    path = _path_under(key, metadata) if key else default
    if key and (problem := path_error(path)):
        raise ValidationFailed(FieldError(f"Upload-Metadata/{key}", problem))
    return FileDeclaration(
        path=path,
        size=size,
        media_type=_media_type(metadata),
        checksum=_checksum(metadata),
        metadata=metadata,
    )


def path_in(metadata: dict[str, str]) -> str | None:
    """What the metadata calls the file; None where it says nothing."""
    return next((path for key in PATHS if (path := _path_under(key, metadata))), None)


def _path_under(key: str, metadata: Mapping[str, str]) -> str:
    """Return the file's path from the pair of this key; empty if the pair has none."""
    value = metadata.get(key, "")
    # Uppy sends "null" for a file without a folder, and a slash before one with a folder.
    if key == "relativePath":
        return "" if value == "null" else value.removeprefix("/")
    return value


def _media_type(metadata: dict[str, str]) -> str | None:
    """The first that is sound: clients put whatever the browser says here."""
    for key in MEDIA_TYPES:
        value = metadata.get(key)
        if value and not any(validate_declaration(FileDeclaration(path="-", media_type=value))):
            return value
    return None


def _checksum(metadata: dict[str, str]) -> str | None:
    value = metadata.get("checksum", "")
    return value if value.startswith("sha256:") else None


def _text(encoded: str) -> tuple[str, str]:
    """A value, and why it is none that is kept as text; either is empty."""
    try:
        text = b64decode(encoded.strip(), validate=True).decode()
    except NotBase64:
        raise _faulty("must have values in Base64") from None
    except UnicodeDecodeError:
        return "", "must be UTF-8"
    if has_control_characters(text):
        return "", path_error(text) or "must not hold control characters"
    return text, ""


def _faulty(message: str) -> ValidationFailed:
    return ValidationFailed(FieldError("Upload-Metadata", message))
