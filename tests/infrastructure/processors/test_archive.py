from __future__ import annotations

import gzip
import os
from typing import Any

import pytest

from application.pipeline import PermanentError
from tests.infrastructure.processors.archives import device, encrypted, lying, tarred, zipped
from tests.infrastructure.processors.step_context import perform

MIB = 1024 * 1024
FILES = {"a.txt": b"words\n" * 100, "folder/b.bin": os.urandom(300_000)}
LINKS = {"folder/c": "b.bin", "folder/up": "../a.txt"}
SOUND = {
    "members": 4,
    "bytes": 300_600,
    "nested": 0,
    "encrypted": 0,
    "links": 2,
}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_sound_tar_is_counted(mode: str) -> None:
    result, _ = perform("archive", tarred(FILES, LINKS, mode), "backup.tar")

    assert result == {"kind": "tar", **SOUND}


def test_a_sound_zip_is_counted() -> None:
    result, _ = perform("archive", zipped(FILES, LINKS), "backup.zip")

    targets = sum(len(target) for target in LINKS.values())  # a zip keeps them as content
    assert result == {"kind": "zip", **SOUND, "bytes": SOUND["bytes"] + targets}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_inside_are_counted_and_limited(pack: Any) -> None:
    inner = zipped({"a.txt": b"x"})
    content = pack({"1.zip": inner, "2": tarred({"a": b"y"}), "3.txt": b"z"})

    assert perform("archive", content, "all.bin")[0]["nested"] == 2
    with pytest.raises(PermanentError, match="more than 1 archives inside"):
        perform("archive", content, "all.bin", {"max_nested": 1})


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b"", "empty.txt"),
        (b"words", "notes.txt"),
        (gzip.compress(b"words", mtime=0), "notes.txt.gz"),
    ],
)
def test_a_file_that_is_no_archive_is_skipped(content: bytes, path: str) -> None:
    result, _ = perform("archive", content, path)

    assert "no archive" in result["skipped"]


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb_is_refused_with_the_reason(pack: Any) -> None:
    bomb = pack({"zeros": bytes(64 * MIB)})

    with pytest.raises(PermanentError, match="bytes unpack to more than 67108864: over 200 times"):
        perform("archive", bomb, "bomb.bin")
    with pytest.raises(PermanentError, match="more than 1048576 bytes when unpacked"):
        perform("archive", bomb, "bomb.bin", {"max_bytes": MIB, "max_ratio": 10_000})


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_more_members_than_allowed_are_refused(pack: Any) -> None:
    content = pack({f"{n}.txt": b"" for n in range(11)})

    perform("archive", content, "many", {"max_members": 11})
    with pytest.raises(PermanentError, match="more than 10 members"):
        perform("archive", content, "many", {"max_members": 10})


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "\\\\server\\a"]
)
def test_a_name_that_leads_out_is_refused(pack: Any, name: str) -> None:
    with pytest.raises(PermanentError, match="which lies outside of it"):
        perform("archive", pack({name: b"x"}), "a.bin")


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    ("links", "reason"),
    [
        ({"a": "/etc/passwd"}, "outside"),
        ({"a": "C:/secret"}, "outside"),
        ({"folder/a": "../../b"}, "outside"),
        ({"a": "folder/../.."}, "back and forth"),
        ({"folder": "elsewhere"}, "behind the link 'folder'"),
    ],
)
def test_a_link_that_leads_astray_is_refused(pack: Any, links: Any, reason: str) -> None:
    with pytest.raises(PermanentError, match=reason):
        perform("archive", pack({"folder/x": b"x"}, links), "a.bin")


def test_encrypted_members_are_refused_unless_allowed() -> None:
    content = encrypted("secret.txt")

    with pytest.raises(PermanentError, match=r"'secret.txt' is encrypted"):
        perform("archive", content, "a.zip")
    result, _ = perform("archive", content, "a.zip", {"allow_encrypted": True})
    assert result["encrypted"] == 1


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b"", "empty.zip"),
        (b"words", "posing.zip"),
        (b"", "empty.tar.gz"),
        (zipped(FILES)[:200_000], "cut.zip"),
        (tarred(FILES)[:200_000], "cut.tar.gz"),
        (tarred(FILES, mode="w")[:200_000], "cut.tar"),
    ],
)
def test_a_broken_archive_fails_for_good(content: bytes, path: str) -> None:
    with pytest.raises(PermanentError, match="cannot be read"):
        perform("archive", content, path)


def test_a_zip_whose_headers_differ_on_a_size_is_refused() -> None:
    with pytest.raises(PermanentError, match=r"the two headers of 'a.txt' differ"):
        perform("archive", lying(10), "lying.zip")


def test_a_file_named_like_a_zip_is_judged_as_one_whatever_it_begins_with() -> None:
    for content in (tarred(FILES, mode="w"), tarred(FILES)):
        with pytest.raises(PermanentError, match="no zip"):
            perform("archive", content, "a.zip")
        with pytest.raises(PermanentError, match="data before"):
            perform("archive", content + zipped(FILES), "a.zip")


def test_a_compressed_file_whose_header_names_a_file_outside_is_refused() -> None:
    content = bytearray(gzip.compress(b"words", mtime=0))
    content[3] |= 8
    content[10:10] = b"../../evil.txt\0"

    for path in ("notes.gz", "notes.tar.gz"):
        with pytest.raises(PermanentError, match=r"named '../../evil.txt', which lies outside"):
            perform("archive", bytes(content), path)


def test_a_tar_without_magic_is_found_by_its_checksum() -> None:
    content = bytearray(tarred(FILES, mode="w"))
    content[257:265] = bytes(8)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])

    assert perform("archive", bytes(content), "backup.bin")[0]["members"] == 2


def test_a_device_is_refused() -> None:
    with pytest.raises(PermanentError, match="'disk' is a device"):
        perform("archive", device(), "a.tar")


@pytest.fixture(scope="module")
def crowded() -> bytes:
    return zipped({f"{n}" * 30: b"" for n in range(100_000)}, packed=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"memory": 60 * MIB}, "more than .* bytes of memory"),
        ({"seconds": 1}, "more than 1 s of processor time"),
    ],
)
def test_an_archive_that_wants_too_much_fails_for_good(
    crowded: bytes, options: Any, reason: str
) -> None:
    with pytest.raises(PermanentError, match=reason):
        perform("archive", crowded, "large.zip", {"max_members": 10**6, **options})
