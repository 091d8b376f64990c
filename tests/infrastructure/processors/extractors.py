"""The common extractors, each run on an archive in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

TOOLS = ("tar", "bsdtar", "unzip", "7z", "zip")
DEPTH = ("a", "b", "c", "out")  # folders below the scratch folder: `..` leads to a place we see
PATIENCE = 30.0  # seconds

# With the options that trust an archive: what a reader does with them, another does without.
TRUSTING = {
    "GNU tar": ["tar", "xiPf", "{}"],
    "bsdtar": ["bsdtar", "xPf", "{}"],
    "unzip": ["unzip", "-qq", "-o", "-:", "{}"],
    "7z": ["7z", "x", "-y", "-bd", "-p", "{}"],
    "7z -spf": ["7z", "x", "-y", "-bd", "-p", "-spf", "{}"],
}
PLAIN = {
    "GNU tar": ["tar", "xf", "{}"],
    "bsdtar": ["bsdtar", "xf", "{}"],
    "unzip": ["unzip", "-qq", "-o", "{}"],
    "7z": ["7z", "x", "-y", "-bd", "-p", "{}"],
}
LISTS = {
    "GNU tar": ["tar", "tiPf", "{}"],
    "bsdtar": ["bsdtar", "tPf", "{}"],
    "unzip": ["unzip", "-Z1", "{}"],
}
FOR_TAR = [name for name in TRUSTING if name != "unzip"]
FOR_ZIP = [name for name in TRUSTING if name != "GNU tar"]


def require_tools() -> None:
    """Skip where a tool is missing, unless everything is required."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing and os.environ.get("UPTRAIL_REQUIRE_ALL") == "1":
        raise AssertionError(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def escapes(content: bytes, name: str) -> list[str]:
    """The readers that write outside of their folder, or list a name that lies outside."""
    kind = "zip" if name.endswith(".zip") else "tar"
    found = []
    with TemporaryDirectory(prefix="extract-") as folder:
        archive = Path(folder) / name
        archive.write_bytes(content)
        for reader in FOR_ZIP if kind == "zip" else FOR_TAR:
            command = TRUSTING[reader]
            if _wrote_outside(Path(folder), lambda out, c=command: _run(c, archive, out)):  # type: ignore[misc]
                found.append(reader)
        python = _python_zip if kind == "zip" else _python_tar
        if _wrote_outside(Path(folder), lambda out: python(archive, out)):
            found.append("Python")
        for reader, command in LISTS.items():
            if reader in (FOR_ZIP if kind == "zip" else FOR_TAR):
                names = _run(command, archive, Path(folder)).stdout.decode(errors="replace")
                if any(map(_leads_out, names.splitlines())):
                    found.append(f"{reader} (listed)")
    return found


def failures(content: bytes, name: str) -> list[str]:
    """The readers that do not extract everything without a complaint."""
    kind = "zip" if name.endswith(".zip") else "tar"
    found = []
    with TemporaryDirectory(prefix="extract-") as folder:
        archive = Path(folder) / name
        archive.write_bytes(content)
        readers = ("bsdtar", "unzip", "7z") if kind == "zip" else ("GNU tar", "bsdtar", "7z")
        for reader in readers:
            out = Path(folder) / reader
            out.mkdir()
            done = _run(PLAIN[reader], archive, out)
            if done.returncode != 0:
                found.append(f"{reader}: {done.stderr.decode(errors='replace')[-300:]}")
        out = Path(folder) / "python"
        out.mkdir()
        try:
            (_zip if kind == "zip" else _tar)(archive, out)
        except Exception as error:
            found.append(f"Python: {error!r}")
    return found


def _wrote_outside(folder: Path, extract: Callable[[Path], object]) -> bool:
    """Run an extractor deep in a folder, and compare what is around it before and after."""
    top = folder / "scratch"
    out = top.joinpath(*DEPTH)
    out.mkdir(parents=True)
    (top / "canary").write_text("unharmed")
    before = _around(top, out)
    extract(out)
    changed = _around(top, out) != before
    with suppress(FileNotFoundError):
        shutil.rmtree(top)
    return changed


def _around(top: Path, out: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for folder, folders, files in os.walk(top):
        if Path(folder) == out:
            folders.clear()
            continue
        for name in (*folders, *files):
            status = (Path(folder) / name).lstat()
            is_out = Path(folder) / name == out or (Path(folder) / name) in out.parents
            found[os.path.join(folder, name)] = (
                status.st_mode,
                0 if is_out else status.st_size + status.st_mtime_ns,
            )
    return found


def _leads_out(name: str) -> bool:
    return name.startswith(("/", "\\")) or os.path.normpath(name).split("/")[0] == ".."


def _run(command: list[str], archive: Path, out: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [part.replace("{}", str(archive)) for part in command],
        cwd=out,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        check=False,
    )


def _tar(archive: Path, out: Path) -> None:
    with tarfile.open(archive) as opened:
        opened.extractall(out)


def _zip(archive: Path, out: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(out)


def _python_tar(archive: Path, out: Path) -> None:
    with suppress(Exception), tarfile.open(archive) as opened:
        if hasattr(tarfile, "fully_trusted_filter"):
            opened.extractall(out, filter="fully_trusted")
        else:
            opened.extractall(out)


def _python_zip(archive: Path, out: Path) -> None:
    with suppress(Exception):
        _zip(archive, out)
