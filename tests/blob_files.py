"""Names and files of the blobs in a folder, packed or not."""

from __future__ import annotations

import os
from pathlib import Path

from infrastructure.blobs.local.packs import members, pack_id_from_file


def uploads_in(folder: Path) -> dict[str, Path]:
    """The names of all blobs of uploads under this folder, and the file that each is in."""
    found = {file.name.replace("_", "/"): file for file in folder.rglob("uploads_*")}
    for file in folder.rglob("@*"):
        for name in _packed_in(file):
            found[name] = file
    return found


def _packed_in(file: Path) -> list[str]:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:  # freed meanwhile
        return []
    try:
        return [str(packed) for packed in members(descriptor, pack_id_from_file(file.name) or "")]
    finally:
        os.close(descriptor)
