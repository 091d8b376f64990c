"""The archive step agrees with GNU tar, bsdtar, unzip, 7z and Python."""

from __future__ import annotations

import bz2
import gzip
import lzma
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infrastructure.processors.archive import ArchiveOptions
from infrastructure.processors.archive_child import inspect
from tests.infrastructure.processors.extractors import escapes, require_tools
from tests.infrastructure.processors.hostile_archives import (
    BOMBS,
    END,
    GNU,
    GOOD,
    POSIX,
    TARS,
    V7,
    ZIPS,
    extended,
    header,
    long,
    member,
)

# Readers that are known to write or name something outside, so that this comparison can fail.
ESCAPING = {
    "name with parent",
    "prefix that GNU tar ignores",
    "prefix of v7 that Python uses",
    "pax path",
    "GNU long name",
    "member after the end",
    "unicode path",
}


def verdict(content: bytes, name: str, **options: Any) -> dict[str, Any]:
    """Run the decoder in this process and return its verdict."""
    chosen = ArchiveOptions(**options)
    order = {field: getattr(chosen, field) for field in chosen.__struct_fields__}
    kind = "zip" if name.endswith(".zip") else "tar"
    order |= {"kind": kind, "unsure": False, "packed": len(content)}
    return inspect(BytesIO(content), order)


@pytest.mark.parametrize("name", TARS)
def test_a_hostile_tar_is_refused(name: str) -> None:
    for content, suffix in ((TARS[name], ".tar"), (gzip.compress(TARS[name]), ".tar.gz")):
        answer = verdict(content, f"a{suffix}")
        assert "found" not in answer
        assert answer.keys() <= {"refused", "broken"}


@pytest.mark.parametrize("name", ZIPS)
def test_a_hostile_zip_is_refused(name: str) -> None:
    assert verdict(ZIPS[name], "a.zip").keys() <= {"refused", "broken"}


def test_every_path_that_escapes_an_extractor_is_refused() -> None:
    require_tools()
    escaped = {name for name, content in TARS.items() if escapes(content, "a.tar")}
    escaped |= {name for name, content in ZIPS.items() if escapes(content, "a.zip")}
    assert escaped >= ESCAPING


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_what_it_unpacks_to(name: str) -> None:
    answer = verdict(BOMBS[name](), name)
    assert "refused" in answer, answer


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"]
)
def test_data_after_a_compressed_stream_is_refused_but_padding_and_a_second_stream_are_not(
    pack: Any,
) -> None:
    packed = pack(GOOD + END)

    assert "found" in verdict(packed, "a.tar.gz")
    assert "found" in verdict(packed + bytes(4096), "a.tar.gz")
    assert "found" in verdict(pack(GOOD[:700]) + pack(GOOD[700:] + END), "a.tar.gz")
    for more in (b"hidden", bytes(512) + b"hidden", pack(member("../evil.txt") + END)):
        assert "refused" in verdict(packed + more, "a.tar.gz")


NAMES = st.lists(st.sampled_from(["a", "..", "b", ".", "", "..."]), min_size=1, max_size=3).map(
    "/".join
)


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Tars of two members with every way to name them."""
    content = b""
    for index in range(2):
        magic = draw(st.sampled_from([POSIX, GNU, V7, b"ustar\0  ", b"ustar \0\0"]))
        name = draw(NAMES) + f"/f{index}"
        if draw(st.booleans()):
            content += extended(path=draw(NAMES) + f"/p{index}")
        if draw(st.booleans()):
            content += long(b"L", draw(NAMES).encode() + b"/l\0")
        prefix = draw(st.one_of(st.just(""), NAMES))
        kind = draw(st.sampled_from([b"0", b"\0", b"2", b"5", b"V"]))
        fields: dict[str, Any] = {"kind": kind, "magic": magic, "prefix": prefix}
        if kind in (b"0", b"\0"):
            content += member(name, b"words", **fields)
        else:
            link = draw(NAMES) if kind == b"2" else ""
            content += header(name, link=link, **fields)
        if draw(st.integers(0, 5)) == 0:
            content += bytes(512)
    return content + END


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(tars())
def test_no_tar_that_is_accepted_escapes_from_an_extractor(content: bytes) -> None:
    require_tools()
    if "found" in verdict(content, "a.tar"):
        assert escapes(content, "a.tar") == []
