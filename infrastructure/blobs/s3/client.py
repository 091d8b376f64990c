"""The requests we make of S3, typed: one method a request, on names instead of keys."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import structlog

from application.errors import StorageFull, Unavailable

# Translation of the errors of S3 to those of the ports.

_NO_ROOM = frozenset({"QuotaExceeded", "StorageFull", "XMinioStorageFull", "507"})
_REFUSED = frozenset(
    {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
)


class BucketUnusable(Exception):
    """The bucket cannot be used as configured; `hint` describes the fix."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class S3Error(Exception):
    """Error response of S3: its code, for instance `NoSuchKey`, and the HTTP status."""

    def __init__(self, code: str, status: int, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.status = status

    @property
    def absent(self) -> bool:
        return self.status == 404 and self.code != "NoSuchBucket"

    @property
    def outdated(self) -> bool:
        """Return whether a condition failed, or two conditional writes collided."""
        return self.status == 412 or self.code == "ConditionalRequestConflict"

    @property
    def unsupported(self) -> bool:
        return self.status == 501 or self.code == "NotImplemented"

    @property
    def denied(self) -> bool:
        return self.code in _REFUSED


@contextmanager
def raising_s3_errors() -> Iterator[None]:
    """Raise S3Error for an error response, Unavailable if there is no response.

    The client has retried by then, where a retry could help.
    """
    from aiohttp import ClientError as BrokenConnection
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        ClientError,
        HTTPClientError,
    )

    try:
        yield
    except ClientError as error:
        details = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise S3Error(str(details.get("Code")), status, str(details.get("Message"))) from error
    except (BotoCoreError, HTTPClientError, BrokenConnection, OSError) as error:
        raise Unavailable(f"the blob store cannot be reached: {error}") from error


@contextmanager
def translate_s3_errors() -> Iterator[None]:
    """Context manager: raise StorageFull or Unavailable for unexpected errors of S3."""
    try:
        yield
    except S3Error as refusal:
        if refusal.code in _NO_ROOM:
            raise StorageFull("there is no room for the bytes") from refusal
        raise Unavailable(f"the blob store refused: {refusal}") from refusal


# Where the bucket is, as one line of text: `s3://bucket/prefix?endpoint=...&region=...`.

SCHEME = "s3://"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"([A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*)?")
_OPTIONS = ("endpoint", "region", "style")
_STYLES = ("auto", "path", "virtual")


class BadLocation(ValueError):
    """Invalid location of a bucket; the message names the error."""


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket and the key prefix in it.

    `endpoint` is the address of an S3 other than Amazon's. `style`: `path`
    puts the bucket name into the path of requests, `virtual` into the host name. Credentials are
    never part of it: they come from the environment, a profile, or the role of the machine, as for
    every AWS client.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    style: str = "auto"

    def key(self, name: str) -> str:
        """Return the key of an object with this name."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/") + at


def parse_location(text: str) -> Location:
    """Parse a location. Raises BadLocation."""
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


# How large the parts of a multipart upload are, and what is known of those that are stored.
#
# Limits of Amazon S3, which others copy: 1 to 10,000 parts, each 5 MiB to 5 GiB, the last one of
# any size ("Amazon S3 multipart upload limits").

MIB = 1024 * 1024
MIN_PART_BYTES = 5 * MIB
MAX_PART_BYTES = 5 * 1024 * MIB
MAX_PARTS = 10_000

_STEP = 64 * 1024  # bytes that sizes are rounded up to


class S3Part(msgspec.Struct, frozen=True):
    """One stored part, as the store lists it."""

    number: int
    size: int
    etag: str


class Parts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parts of a blob so far: `count` of them, `size` bytes in all.

    A part number is never reused: some stores keep both parts then. `last` is the highest used
    number, `skipped` are ranges (first, last) of parts that do not count: a killed process
    sent them without acknowledgement. `seal` chains the ETags of the counted parts, to detect
    lost or replaced ones.
    """

    upload: str | None = None
    count: int = 0
    size: int = 0
    seal: str = ""
    last: int = 0
    skipped: tuple[tuple[int, int], ...] = ()

    def plus(self, part: S3Part) -> Parts:
        """Return the parts with one more, whose number is higher than any before."""
        skipped = self.after(part.number - 1).skipped
        seal = sha256(f"{self.seal}{part.etag}".encode()).hexdigest()
        size = self.size + part.size
        return Parts(self.upload, self.count + 1, size, seal, part.number, skipped)

    def after(self, number: int) -> Parts:
        """Return the same parts, to be continued after this number."""
        if number <= self.last:
            return self
        skipped = (*self.skipped, (self.last + 1, number))
        return msgspec.structs.replace(self, last=number, skipped=skipped)

    def counted(self, listed: Iterable[S3Part]) -> list[S3Part]:
        """Return the listed parts that count, in their order."""
        return [
            part
            for part in sorted(listed, key=lambda part: part.number)
            if part.number <= self.last
            and not any(first <= part.number <= last for first, last in self.skipped)
        ]

    def prefixes(self, listed: Iterable[S3Part]) -> list[Parts] | None:
        """Return the states after none, one, two, ... parts; None if the parts do not match."""
        steps = [Parts(self.upload)]
        for part in self.counted(listed):
            steps.append(steps[-1].plus(part))
        found = steps[-1]
        same = (found.count, found.size, found.seal) == (self.count, self.size, self.seal)
        return steps if same else None


NO_PARTS = Parts()


def next_part_size(parts: Parts, largest: int) -> int:
    """Return the size of the next part in bytes, such that a blob of `largest` bytes fits.

    Sizes grow evenly from the smallest: small files then need little memory and only very large
    ones large parts (a blob of 1 TiB ends with parts of 205 MiB, one of 10 GiB with 21 MiB).
    """
    left = MAX_PARTS - parts.last
    growth = max(0, -(-2 * (largest - MAX_PARTS * MIN_PART_BYTES) // MAX_PARTS**2))
    size = MIN_PART_BYTES + growth * (parts.last + 1)
    planned = left * (size + MIN_PART_BYTES + growth * MAX_PARTS) // 2
    missing = largest - parts.size
    if left > 0 and planned < missing:  # the largest size allowed was raised meanwhile
        size = max(size, -(-missing // left))
    return min(-(-size // _STEP) * _STEP, MAX_PART_BYTES)


def split_ranges(size: int, largest: int) -> list[tuple[int, int]]:
    """Return ranges (start, end) of about equal length, none longer than `largest`."""
    count = max(1, -(-size // largest))
    return list(pairwise(size * n // count for n in range(count + 1)))


ABSENT = "*"  # the condition that there is no object yet

NO_METADATA: Mapping[str, str] = {}


_log = structlog.get_logger(__name__)


class ObjectInfo(msgspec.Struct, frozen=True):
    """Metadata of an object."""

    size: int
    etag: str
    metadata: dict[str, str]


class ListedObject(msgspec.Struct, frozen=True):
    """Object in a listing."""

    name: str
    written: datetime


class PendingUpload(msgspec.Struct, frozen=True):
    """An incomplete multipart upload."""

    name: str
    upload: str
    began: datetime


class Bucket:
    """Requests to a bucket.

    Raises S3Error for an error response, Unavailable without a response.
    """

    def __init__(self, client: Any, location: Location) -> None:
        self._client = client
        self._conditional = True  # until the store turns out not to know conditional writes
        self.location = location

    async def require(self) -> None:
        """Check that the bucket exists."""
        with raising_s3_errors():
            await self._client.head_bucket(Bucket=self.location.bucket)

    async def head(self, name: str) -> ObjectInfo | None:
        try:
            answer = await self._ask("head_object", name)
        except S3Error as refusal:
            if refusal.absent:
                return None
            raise
        return ObjectInfo(answer["ContentLength"], _etag(answer), answer.get("Metadata", {}))

    async def get(
        self, name: str, start: int, end: int | None, etag: str | None = None
    ) -> tuple[Any, str]:
        """Return the body of an object, to be read and closed, and its ETag.

        With `etag`, raises an `outdated` S3Error if the object has another one.
        """
        span = f"bytes={start}-{'' if end is None else end - 1}"
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        answer = await self._ask("get_object", name, Range=span, **condition)
        return answer["Body"], _etag(answer)

    async def put(
        self,
        name: str,
        content: bytes,
        metadata: Mapping[str, str] = NO_METADATA,
        over: str | None = None,
    ) -> str:
        """Store an object and return its ETag.

        `over` is the ETag of the object to replace, or ABSENT; raises an `outdated` S3Error if the
        object has another one.
        """
        condition = {}
        if over is not None and self._conditional:
            condition = {"IfNoneMatch": over} if over == ABSENT else {"IfMatch": f'"{over}"'}
        try:
            answer = await self._ask(
                "put_object", name, Body=content, Metadata=metadata, **condition
            )
        except S3Error as refusal:
            if not (condition and refusal.unsupported):
                raise
            self._conditional = False
            _log.warning("s3_without_conditions", advice="locks alone keep writers apart here")
            return await self.put(name, content, metadata)
        return _etag(answer)

    async def delete(self, name: str) -> None:
        await self._ask("delete_object", name)

    async def page(self, prefix: str, after: str) -> tuple[list[ListedObject], bool]:
        """Return some objects with the prefix in the order of names, and whether there are more."""
        key = self.location.key
        place = {"Bucket": self.location.bucket, "Prefix": key(prefix)}
        if after:
            place["StartAfter"] = key(after)
        with raising_s3_errors():
            answer = await self._client.list_objects_v2(**place)
        found = [
            ListedObject(one["Key"].removeprefix(key("")), one["LastModified"])
            for one in answer.get("Contents", [])
        ]
        return found, bool(answer.get("IsTruncated"))

    async def create(self, name: str) -> str:
        """Begin a multipart upload and return its id."""
        answer = await self._ask("create_multipart_upload", name)
        return str(answer["UploadId"])

    async def upload(self, name: str, upload: str, number: int, content: bytes) -> S3Part:
        answer = await self._ask(
            "upload_part", name, UploadId=upload, PartNumber=number, Body=content
        )
        return S3Part(number, len(content), _etag(answer))

    async def copy(
        self, name: str, upload: str, number: int, start: int, end: int, etag: str
    ) -> S3Part:
        """Store bytes of the object of the same name as a part, without transferring them."""
        answer = await self._ask(
            "upload_part_copy",
            name,
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": self.location.bucket, "Key": self.location.key(name)},
            CopySourceRange=f"bytes={start}-{end - 1}",
            CopySourceIfMatch=f'"{etag}"',
        )
        return S3Part(number, end - start, _etag(answer["CopyPartResult"]))

    async def parts(self, name: str, upload: str) -> list[S3Part] | None:
        """Return all stored parts, 10,000 at most; None if the upload does not exist.

        Some stores list a part twice if it was sent again because the first response was lost.
        """
        found: list[S3Part] = []
        marker: dict[str, int] = {}
        while True:
            try:
                answer = await self._ask("list_parts", name, UploadId=upload, **marker)
            except S3Error as refusal:
                if refusal.absent:
                    return None
                raise
            listed = answer.get("Parts", [])
            found += [S3Part(part["PartNumber"], part["Size"], _etag(part)) for part in listed]
            if not listed or not answer.get("IsTruncated"):
                return list(dict.fromkeys(found))
            marker = {"PartNumberMarker": found[-1].number}

    async def complete(self, name: str, upload: str, parts: list[S3Part]) -> None:
        """Join the parts into one object."""
        named = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        await self._ask(
            "complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": named}
        )

    async def abort(self, name: str, upload: str) -> None:
        """Delete the parts of an upload, if it exists."""
        try:
            await self._ask("abort_multipart_upload", name, UploadId=upload)
        except S3Error as refusal:
            if not refusal.absent:
                raise

    async def pending(self, prefix: str) -> AsyncIterator[PendingUpload]:
        """Return the multipart uploads for names with this prefix."""
        place = {"Bucket": self.location.bucket, "Prefix": self.location.key(prefix)}
        marker: dict[str, str] = {}
        while True:
            with raising_s3_errors():
                answer = await self._client.list_multipart_uploads(**place, **marker)
            for found in answer.get("Uploads", []):
                name = found["Key"].removeprefix(self.location.key(""))
                yield PendingUpload(name, found["UploadId"], found["Initiated"])
            if not answer.get("IsTruncated"):
                return
            marker = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }

    async def _ask(self, operation: str, name: str, **arguments: Any) -> Any:
        with raising_s3_errors():
            return await getattr(self._client, operation)(
                Bucket=self.location.bucket, Key=self.location.key(name), **arguments
            )


def _etag(answer: Mapping[str, Any]) -> str:
    """Return the ETag without quotes: some stores quote it, others do not."""
    return str(answer["ETag"]).strip('"')
