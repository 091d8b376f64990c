"""Where the bucket is, as one line of text: `s3://bucket/prefix?endpoint=...&region=...`."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

import msgspec

SCHEME = "s3://"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"([A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*)?")
_OPTIONS = ("endpoint", "region", "style")
_STYLES = ("auto", "path", "virtual")


class BadLocation(ValueError):
    """A text that names no bucket; the message says what is wrong with it."""


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket, and the prefix in it that is ours.

    `endpoint` is the address of an S3 other than Amazon's. `style` says how a bucket is named in
    requests: `path` puts it into the path, `virtual` into the host name. Credentials are never
    part of it: they come from where every AWS client looks for them (the environment, a profile,
    the role of the machine).
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    style: str = "auto"

    def key(self, name: str) -> str:
        """The key under which something of that name is kept."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/") + at


def parse_location(text: str) -> Location:
    """Raises BadLocation."""
    parts = urlsplit(text)
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc):
        raise BadLocation(f"{text!r} names no bucket: s3://bucket/prefix?endpoint=https://...")
    prefix = parts.path.strip("/")
    if not _PREFIX.fullmatch(prefix) or {".", ".."} & set(prefix.split("/")):
        raise BadLocation(f"{prefix!r} is no prefix of keys")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := set(options) - set(_OPTIONS):
        raise BadLocation(f"{min(unknown)!r} is none of {', '.join(_OPTIONS)}")
    if options.get("style", "auto") not in _STYLES:
        raise BadLocation(f"style is one of {', '.join(_STYLES)}")
    if not re.match(r"https?://[^/]", options.get("endpoint", "https://amazon")):
        raise BadLocation("endpoint is an http:// or https:// address")
    return Location(bucket=parts.netloc, prefix=prefix, **options)
