"""The errors of S3, told in the words of the ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from application.errors import StorageFull, Unavailable

_NO_ROOM = frozenset({"QuotaExceeded", "StorageFull", "XMinioStorageFull", "507"})
_REFUSED = frozenset(
    {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
)


class BadBlobStore(Exception):
    """The bucket cannot be used as it is set up: says why, and in `hint` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Refusal(Exception):
    """S3 said no: its code, such as `NoSuchKey`, and the HTTP status."""

    def __init__(self, code: str, status: int, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.status = status

    @property
    def absent(self) -> bool:
        return self.status == 404 and self.code != "NoSuchBucket"

    @property
    def outdated(self) -> bool:
        """A condition did not hold, or two conditional writes met."""
        return self.status == 412 or self.code == "ConditionalRequestConflict"

    @property
    def unsupported(self) -> bool:
        return self.status == 501 or self.code == "NotImplemented"

    @property
    def denied(self) -> bool:
        return self.code in _REFUSED


@contextmanager
def refusals() -> Iterator[None]:
    """Raises Refusal for an answer of S3 that is an error, Unavailable where there is none.

    By then the client has tried again several times where that could help.
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
        told = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise Refusal(str(told.get("Code")), status, str(told.get("Message"))) from error
    except (BotoCoreError, HTTPClientError, BrokenConnection, OSError) as error:
        raise Unavailable(f"the blob store cannot be reached: {error}") from error


@contextmanager
def told() -> Iterator[None]:
    """Raises StorageFull or Unavailable for whatever refusal nobody expected."""
    try:
        yield
    except Refusal as refusal:
        if refusal.code in _NO_ROOM:
            raise StorageFull("there is no room for the bytes") from refusal
        raise Unavailable(f"the blob store refused: {refusal}") from refusal
