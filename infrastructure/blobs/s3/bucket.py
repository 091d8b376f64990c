"""The requests we make of S3, typed: one method a request, on names instead of keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

import msgspec
import structlog

from infrastructure.blobs.s3.failures import Refusal, refusals
from infrastructure.blobs.s3.location import Location
from infrastructure.blobs.s3.parts import Part

ABSENT = "*"  # the condition that there is no object yet

NO_METADATA: Mapping[str, str] = {}


_log = structlog.get_logger(__name__)


class Stored(msgspec.Struct, frozen=True):
    """An object without its bytes."""

    size: int
    etag: str
    metadata: dict[str, str]


class Listed(msgspec.Struct, frozen=True):
    """An object as a listing shows it."""

    name: str
    written: datetime


class Pending(msgspec.Struct, frozen=True):
    """A multipart upload that nobody has completed yet."""

    name: str
    upload: str
    began: datetime


class Bucket:
    """Raises Refusal for an answer that is an error, Unavailable where none comes."""

    def __init__(self, client: Any, location: Location) -> None:
        self._client = client
        self._conditional = True  # until the store turns out not to know conditional writes
        self.location = location

    async def require(self) -> None:
        """Asks for the bucket itself."""
        with refusals():
            await self._client.head_bucket(Bucket=self.location.bucket)

    async def head(self, name: str) -> Stored | None:
        try:
            answer = await self._ask("head_object", name)
        except Refusal as refusal:
            if refusal.absent:
                return None
            raise
        return Stored(answer["ContentLength"], _etag(answer), answer.get("Metadata", {}))

    async def get(
        self, name: str, start: int, end: int | None, etag: str | None = None
    ) -> tuple[Any, str]:
        """The body of an object, to be read and closed, and the ETag.

        With `etag`, only of the object that has it: any other refuses with `outdated`.
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
        """Stores an object and returns its ETag.

        `over` is the ETag of the object to replace, or ABSENT; another one refuses with `outdated`.
        """
        condition = {}
        if over is not None and self._conditional:
            condition = {"IfNoneMatch": over} if over == ABSENT else {"IfMatch": f'"{over}"'}
        try:
            answer = await self._ask(
                "put_object", name, Body=content, Metadata=metadata, **condition
            )
        except Refusal as refusal:
            if not (condition and refusal.unsupported):
                raise
            self._conditional = False
            _log.warning("s3_without_conditions", advice="locks alone keep writers apart here")
            return await self.put(name, content, metadata)
        return _etag(answer)

    async def delete(self, name: str) -> None:
        await self._ask("delete_object", name)

    async def page(self, prefix: str, after: str) -> tuple[list[Listed], bool]:
        """Some objects with the prefix, in the order of names, and whether there are more."""
        key = self.location.key
        place = {"Bucket": self.location.bucket, "Prefix": key(prefix)}
        if after:
            place["StartAfter"] = key(after)
        with refusals():
            answer = await self._client.list_objects_v2(**place)
        found = [
            Listed(one["Key"].removeprefix(key("")), one["LastModified"])
            for one in answer.get("Contents", [])
        ]
        return found, bool(answer.get("IsTruncated"))

    async def create(self, name: str) -> str:
        """Begins a multipart upload, and returns its id."""
        answer = await self._ask("create_multipart_upload", name)
        return str(answer["UploadId"])

    async def upload(self, name: str, upload: str, number: int, content: bytes) -> Part:
        answer = await self._ask(
            "upload_part", name, UploadId=upload, PartNumber=number, Body=content
        )
        return Part(number, len(content), _etag(answer))

    async def copy(
        self, name: str, upload: str, number: int, start: int, end: int, etag: str
    ) -> Part:
        """Makes a part out of bytes of the object that has the same name, inside the store."""
        answer = await self._ask(
            "upload_part_copy",
            name,
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": self.location.bucket, "Key": self.location.key(name)},
            CopySourceRange=f"bytes={start}-{end - 1}",
            CopySourceIfMatch=f'"{etag}"',
        )
        return Part(number, end - start, _etag(answer["CopyPartResult"]))

    async def parts(self, name: str, upload: str) -> list[Part] | None:
        """Every part that is stored, 10,000 at most; None where the upload is gone.

        Some stores list a part twice that was sent again because the first answer got lost.
        """
        found: list[Part] = []
        marker: dict[str, int] = {}
        while True:
            try:
                answer = await self._ask("list_parts", name, UploadId=upload, **marker)
            except Refusal as refusal:
                if refusal.absent:
                    return None
                raise
            listed = answer.get("Parts", [])
            found += [Part(part["PartNumber"], part["Size"], _etag(part)) for part in listed]
            if not listed or not answer.get("IsTruncated"):
                return list(dict.fromkeys(found))
            marker = {"PartNumberMarker": found[-1].number}

    async def complete(self, name: str, upload: str, parts: list[Part]) -> None:
        """Makes the parts one object."""
        named = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        await self._ask(
            "complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": named}
        )

    async def abort(self, name: str, upload: str) -> None:
        """Frees the parts of an upload; one that is gone is fine."""
        try:
            await self._ask("abort_multipart_upload", name, UploadId=upload)
        except Refusal as refusal:
            if not refusal.absent:
                raise

    async def pending(self, prefix: str) -> AsyncIterator[Pending]:
        """The multipart uploads for names that begin with the prefix."""
        place = {"Bucket": self.location.bucket, "Prefix": self.location.key(prefix)}
        marker: dict[str, str] = {}
        while True:
            with refusals():
                answer = await self._client.list_multipart_uploads(**place, **marker)
            for found in answer.get("Uploads", []):
                name = found["Key"].removeprefix(self.location.key(""))
                yield Pending(name, found["UploadId"], found["Initiated"])
            if not answer.get("IsTruncated"):
                return
            marker = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }

    async def _ask(self, operation: str, name: str, **arguments: Any) -> Any:
        with refusals():
            return await getattr(self._client, operation)(
                Bucket=self.location.bucket, Key=self.location.key(name), **arguments
            )


def _etag(answer: Mapping[str, Any]) -> str:
    """Some stores quote it, others do not."""
    return str(answer["ETag"]).strip('"')
