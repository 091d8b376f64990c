"""Archives, valid and hostile."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Mapping
from io import BytesIO


def zipped(
    files: Mapping[str, bytes], links: Mapping[str, str] | None = None, packed: bool = True
) -> bytes:
    buffer = BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(_named(name), content, method)
        for name, target in (links or {}).items():
            info = _named(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    return buffer.getvalue()


def tarred(
    files: Mapping[str, bytes], links: Mapping[str, str] | None = None, mode: str = "w:gz"
) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return buffer.getvalue()


def encrypted(name: str) -> bytes:
    """A zip whose only member says that it is encrypted."""
    content = bytearray(zipped({name: b"words"}, packed=False))
    content[6] |= 1  # the flags of the member
    content[content.rindex(b"PK\1\2") + 8] |= 1  # and those of its entry in the directory
    return bytes(content)


def lying(size: int) -> bytes:
    """A zip that says its member has only so many bytes, while a megabyte is packed in it."""
    content = bytearray(zipped({"a.txt": bytes(1024 * 1024)}))
    entry = content.rindex(b"PK\1\2")
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    return bytes(content)


def device() -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("disk")
        info.type = tarfile.BLKTYPE
        archive.addfile(info)
    return buffer.getvalue()


def _named(name: str) -> zipfile.ZipInfo:
    """Under the very name: the library would make it harmless."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    return info
