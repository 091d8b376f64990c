"""The problem types that the IETF's drafts on uploads and digests define.

Sources: draft-ietf-httpbis-resumable-upload, its section on problem types (completed-upload up to
interop version 6), and draft-ietf-httpapi-digest-fields-problem-types.
"""

from __future__ import annotations

from domain.upload.state import UploadState
from interfaces.rest.problems import Problem

_TYPE = "https://iana.org/assignments/http-problem-types#{name}"


def offset_mismatch(expected: int, provided: int) -> Problem:
    return Problem(
        409,
        "offset_mismatch",
        f"the upload stands at offset {expected}, not {provided}",
        title="offset from request does not match offset of resource",
        type=_TYPE.format(name="mismatching-upload-offset"),
        members={"expected-offset": expected, "provided-offset": provided},
        headers={"Upload-Offset": str(expected)},
    )


def completed(size: int) -> Problem:
    return Problem(
        400,
        "completed_upload",
        f"all {size} bytes of the upload are here",
        title="upload is already completed",
        type=_TYPE.format(name="completed-upload"),
        headers={"Upload-Offset": str(size)},
    )


def inconsistent_length(detail: str) -> Problem:
    return Problem(
        400,
        "inconsistent_length",
        detail,
        title="inconsistent length values for upload",
        type=_TYPE.format(name="inconsistent-upload-length"),
    )


def digest_mismatch() -> Problem:
    return Problem(
        400,
        "digest_mismatch",
        "the bytes are not those the digest was made of; none of them is kept",
        title="digest values do not match",
        type=_TYPE.format(name="digest-mismatching-values"),
    )


def unsupported_digest(names: str) -> Problem:
    return Problem(
        400,
        "unsupported_digest",
        f"send a digest of {names}",
        title="hashing algorithm is not supported",
        type=_TYPE.format(name="digest-unsupported-algorithms"),
        headers={"Want-Content-Digest": "sha-256=10, sha-512=5"},
    )


def invalid_digest(header: str) -> Problem:
    return Problem(
        400,
        "invalid_digest",
        f"{header} cannot be read, or is of the wrong length",
        title="digest value is invalid",
        type=_TYPE.format(name="digest-invalid-values"),
    )


def inactive(state: UploadState) -> Problem:
    """404, as interop version 5 demands of an upload that is none any more."""
    return Problem(404, "not_found", f"the upload is {state}")
