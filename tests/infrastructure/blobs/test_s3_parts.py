from __future__ import annotations

import pytest

from infrastructure.blobs.s3.client import (
    MAX_PART_BYTES,
    MAX_PARTS,
    MIB,
    MIN_PART_BYTES,
    BadLocation,
    Location,
    Parts,
    S3Part,
    next_part_size,
    parse_location,
    split_ranges,
)

GIB = 1024 * MIB
TIB = 1024 * GIB


def _sizes(largest: int, upto: int | None = None) -> list[int]:
    """The sizes of all parts of a blob that becomes as large as allowed."""
    parts, sizes = Parts(), list[int]()
    while parts.size < (upto or largest):
        sizes.append(next_part_size(parts, largest))
        parts = Parts(last=parts.last + 1, size=parts.size + sizes[-1])
    return sizes


@pytest.mark.parametrize("largest", [1, 5 * MIB, 48 * GIB, 49 * GIB, 100 * GIB, TIB, 5 * TIB])
def test_ten_thousand_parts_hold_whatever_size_is_allowed(largest: int) -> None:
    sizes = _sizes(largest)
    assert len(sizes) <= MAX_PARTS
    assert min(sizes) >= MIN_PART_BYTES
    assert max(sizes) <= MAX_PART_BYTES


def test_small_files_need_small_parts_however_large_others_may_be() -> None:
    assert max(_sizes(TIB, upto=10 * GIB)) < 22 * MIB
    assert max(_sizes(TIB)) < 210 * MIB


def test_a_limit_that_is_raised_meanwhile_is_still_reached() -> None:
    parts = Parts(last=9_000, size=9_000 * MIN_PART_BYTES)
    rest = 0
    while parts.size < TIB:
        rest += 1
        parts = Parts(last=parts.last + 1, size=parts.size + next_part_size(parts, TIB))
    assert rest <= 1_000


def test_parts_that_nobody_acknowledged_do_not_count() -> None:
    upload = Parts("id").plus(S3Part(1, 10, "a"))
    killed = [S3Part(1, 10, "a"), S3Part(2, 10, "lost"), S3Part(3, 10, "lost too")]
    resumed = upload.after(3).plus(S3Part(4, 10, "b"))
    stored = [*killed, S3Part(4, 10, "b"), S3Part(5, 1, "later")]
    assert resumed.skipped == ((2, 3),)
    assert [part.number for part in resumed.counted(stored)] == [1, 4]
    steps = resumed.prefixes(stored)
    assert steps is not None
    assert [step.size for step in steps] == [0, 10, 20]
    assert resumed.prefixes([S3Part(1, 10, "other"), S3Part(4, 10, "b")]) is None
    assert resumed.prefixes([S3Part(4, 10, "b")]) is None


def test_bytes_are_split_evenly() -> None:
    assert split_ranges(10, 4) == [(0, 3), (3, 6), (6, 10)]
    assert split_ranges(4, 4) == [(0, 4)]


def test_a_bucket_is_named_in_one_line() -> None:
    assert parse_location("s3://bucket") == Location(bucket="bucket")
    text = "s3://bucket/a/b/?endpoint=http://127.0.0.1:9000&region=eu-west-1&style=path"
    assert parse_location(text) == Location(
        bucket="bucket",
        prefix="a/b",
        endpoint="http://127.0.0.1:9000",
        region="eu-west-1",
        style="path",
    )
    assert parse_location(text).key("uploads/x") == "a/b/uploads/x"


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3://UPPER",
        "s3://b",
        "s3://key:secret@bucket",
        "s3://bucket/../other",
        "s3://bucket/a b",
        "s3://bucket?endpoint=ftp://x",
        "s3://bucket?secret=x",
        "s3://bucket?style=other",
        "s4://bucket",
    ],
)
def test_what_names_no_bucket_is_refused(text: str) -> None:
    with pytest.raises(BadLocation):
        parse_location(text)
