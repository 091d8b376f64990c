"""Archives made by the common tools are accepted, with the usual contents."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.infrastructure.processors.extractors import failures, require_tools
from tests.infrastructure.processors.hostile_archives import (
    END,
    archive_zip,
    end_of,
    extended,
    header,
    member,
    unicode_path,
    zip_of,
)
from tests.infrastructure.processors.test_archive_extractors import verdict

LONG = "a folder with a long name/" * 6
TAR = {
    "GNU tar": "tar -cf {} .",
    "GNU tar v7": "tar --format=v7 --exclude=long -cf {} .",
    "GNU tar oldgnu": "tar --format=oldgnu -cf {} .",
    "GNU tar ustar": "tar --format=ustar --exclude=long -cf {} .",
    "GNU tar pax": "tar --format=posix -cf {} .",
    "GNU tar label": "tar --label='Backup 1:1 of 2026' -cf {} .",
    "GNU tar sparse": "tar -S -cf {} .",
    "GNU tar sparse pax": "tar -S --format=posix -cf {} .",
    "GNU tar sparse 0.1": "tar -S --format=posix --sparse-version=0.1 -cf {} .",
    "GNU tar incremental": "tar --listed-incremental={}.snar -cf {} .",
    "GNU tar times": "tar --format=gnu --atime-preserve -cf {} .",
    "GNU tar blocking": "tar -b 1 -cf {} .",
    "GNU tar global": "tar --format=posix --pax-option=globexthdr.name=g,comment=x -cf {} .",
    "bsdtar pax": "bsdtar --format pax -cf {} .",
    "bsdtar restricted": "bsdtar --format paxr -cf {} .",
    "bsdtar ustar": "bsdtar --format ustar -cf {} .",
    "bsdtar gnutar": "bsdtar --format gnutar -cf {} .",
    "bsdtar v7": "bsdtar --format v7tar --exclude long -cf {} .",
    "7z": "7z a -ttar -snl -bd {} .",
}
COMPRESSED = {
    "gzip": "tar -czf {} .",
    "bzip2": "tar -cjf {} .",
    "xz": "tar -cJf {} .",
    "bsdtar gzip": "bsdtar -czf {} .",
    "bsdtar xz": "bsdtar -cJf {} .",
}
ZIP = {
    "zip": "zip -qr {} .",
    "zip with links": "zip -qry {} .",
    "zip stored": "zip -q0r {} .",
    "zip bzip2": "zip -qr -Z bzip2 {} .",
    "zip streamed": "zip -qr - . > {}",
    "zip from a pipe": "echo words | zip -q {} -",
    "zip64": "zip -qr -fz {} .",
    "zip with a comment": "zip -qr {} . && echo 'a comment' | zip -qz {}",
    "zip after a deletion": "zip -qr {} . && zip -qd {} '*ok.txt'",
    "bsdtar": "bsdtar --format zip -cf {} .",
    "bsdtar streamed": "bsdtar --format zip -cf - . | cat > {}",
    "7z": "7z a -tzip -bd {} .",
    "7z lzma": "7z a -tzip -mm=lzma -bd {} .",
    "7z bzip2": "7z a -tzip -mm=bzip2 -bd {} .",
    "7z in its own encoding": "7z a -tzip -mcl=on -bd {} .",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with names, links and files as people have them."""
    require_tools()
    top = tmp_path_factory.mktemp("files") / "top"
    (top / "long" / LONG).mkdir(parents=True)
    (top / "__MACOSX").mkdir()
    (top / "empty folder").mkdir()
    (top / "1:1 notes.txt").write_text("words\n" * 1000)
    (top / "ok.txt").write_bytes(b"")
    (top / "grüße.txt").write_text("ü")
    (top / "e\u0301.txt").write_text("decomposed")
    (top / "__MACOSX" / "._ok.txt").write_bytes(b"\0\5\x16\7" + bytes(100))
    (top / "a..b").write_text("two dots")
    (top / "...").write_text("three dots")
    (top / "random.bin").write_bytes(os.urandom(300_000))
    (top / "long" / LONG / ("n" * 90 + ".txt")).write_text("deep")
    (top / "long" / "link").symlink_to(LONG)
    (top / "long" / LONG / "up").symlink_to("../../ok.txt")
    (top / "hard.txt").hardlink_to(top / "1:1 notes.txt")
    with (top / "sparse.bin").open("wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(500_000)
        sparse.write(b"end")
    return top


def made(command: str, folder: Path, target: Path) -> bytes:
    script = command.replace("{}", str(target))
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=folder,
        capture_output=True,
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target.read_bytes()


@pytest.mark.parametrize("tool", TAR)
def test_a_tar_of_a_common_tool_is_accepted(tool: str, folder: Path, tmp_path: Path) -> None:
    answer = verdict(made(TAR[tool], folder, tmp_path / "a.tar"), "a.tar")

    assert "found" in answer, answer
    assert answer["found"]["members"] >= 10


@pytest.mark.parametrize("tool", COMPRESSED)
def test_a_compressed_tar_of_a_common_tool_is_accepted(
    tool: str, folder: Path, tmp_path: Path
) -> None:
    answer = verdict(made(COMPRESSED[tool], folder, tmp_path / "a.tar.gz"), "a.tar.gz")

    assert "found" in answer, answer


@pytest.mark.parametrize("tool", ZIP)
def test_a_zip_of_a_common_tool_is_accepted(tool: str, folder: Path, tmp_path: Path) -> None:
    answer = verdict(made(ZIP[tool], folder, tmp_path / "a.zip"), "a.zip")

    assert "found" in answer, answer


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_python_is_accepted(format: int, folder: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for path in folder.iterdir():
            if path.name != "long" or format != tarfile.USTAR_FORMAT:
                archive.add(path, path.name)

    assert "found" in verdict(buffer.getvalue(), "a.tar")


class Unseekable(io.BytesIO):
    """A file that zipfile has to stream to."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError

    def seek(self, at: int, whence: int = 0, /) -> int:
        raise OSError


@pytest.mark.parametrize("make", [io.BytesIO, Unseekable])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_of_python_is_accepted(
    make: Callable[[], io.BytesIO], force: bool, method: int
) -> None:
    buffer = make()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.mkdir("d") if hasattr(archive, "mkdir") else archive.writestr("d/", "")
        for name in ("d/1:1 notes.txt", "grüße.txt", "empty"):
            with archive.open(name, "w", force_zip64=force) as file:
                file.write(b"" if name == "empty" else b"words" * 1000)
        archive.comment = b"a comment"

    answer = verdict(buffer.getvalue(), "a.zip")
    assert "found" in answer, answer


@pytest.mark.parametrize(
    ("content", "name", "members"),
    [
        (bytes(10240), "empty.tar", 0),
        (end_of(0, 0, 0), "empty.zip", 0),
        (end_of(0, 0, 0, b"only a comment"), "comment.zip", 0),
        (member("1:1 notes.txt") + END, "colon.tar", 1),
        (archive_zip(b"1:1 notes.txt"), "colon.zip", 1),
        (header("label", kind=b"V") + member("x") + END, "label.tar", 2),
        (member("x"), "no end.tar", 1),
        (
            extended(path="d/" * 48 + "a/" + "..data/x")
            + member(("d/" * 48 + "a/" + "..data/x")[:100])
            + END,
            "cut in two.tar",
            1,
        ),
        (member("x") + END + bytes(20 * 512), "much padding.tar", 1),
        (archive_zip(b"gr\x81\xe1e.txt"), "cp437.zip", 1),
        (
            archive_zip(b"gr\x81\xe1e.txt", extra=unicode_path(b"gr\x81\xe1e.txt", b"gr\xc3\xbc")),
            "unicode path.zip",
            1,
        ),
        (
            zip_of(*((f"{n}.docx", zip_of(("[Content_Types].xml", b"x"))) for n in range(101))),
            "documents.zip",
            101,
        ),
        (zip_of(*((f"{n}.log.gz", gzip.compress(b"line")) for n in range(101))), "logs.zip", 101),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unusual_but_sound_archive_is_accepted(content: bytes, name: str, members: int) -> None:
    answer = verdict(content, name)

    assert answer.get("found", answer)["members"] == members
    assert answer["found"]["nested"] == 0


@pytest.mark.parametrize("tool", ["GNU tar pax", "bsdtar gnutar"])
def test_an_accepted_archive_is_extracted_by_every_reader(
    tool: str, folder: Path, tmp_path: Path
) -> None:
    # 7z ignores any link with a `..` that is near enough to the top.
    command = TAR[tool].replace(" -cf", " --exclude up -cf")
    content = made(command, folder, tmp_path / "a.tar")

    assert "found" in verdict(content, "a.tar")
    assert failures(content, "a.tar") == []
