"""What the blobs of uploads are called, so that whoever finds one knows whose it is."""

from __future__ import annotations

from uuid import UUID

FOLDER = "uploads"


def blob_of(upload: UUID) -> str:
    """The blob that the transfers of an upload append to."""
    return f"{FOLDER}/{upload}"


def blob_of_whole(upload: UUID, token: UUID) -> str:
    """The blob of a file that came whole with its registration.

    Two senders may register the same path at once, each with bytes of its own: the token
    keeps them apart, and the log decides whose is the upload's.
    """
    return f"{FOLDER}/{upload}.{token.hex}"


def upload_named_in(blob: str) -> UUID | None:
    """The upload whose bytes a blob of this name holds; None for a blob of another kind."""
    folder, _, file = blob.partition("/")
    if folder != FOLDER:
        return None
    try:
        return UUID(file.partition(".")[0])
    except ValueError:
        return None
