"""Functions of the operating system: durable files and the C library."""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Callable
from pathlib import Path

PRIVATE_FILE_MODE = 0o600  # mode of a file that only its owner can open


def write_file_atomically(
    file: Path, content: bytes, *, mode: int = PRIVATE_FILE_MODE, replace: bool = True
) -> bool:
    """Write a file durably, with its name: readers find all of the content or none of it.

    Returns False if the file exists and `replace` is false. No other user can open the file before
    it has its final mode. Folders above it are made for its owner alone. Raises OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            if mode != PRIVATE_FILE_MODE:
                os.chmod(draft, mode)
            os.fsync(descriptor)
        if replace:
            draft.replace(file)
        else:
            os.link(draft, file)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(file.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Windows, where a folder cannot be opened, does so itself.

    Raises OSError.
    """
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def libc_function(
    name: str, *arguments: type[ctypes._SimpleCData[int]]
) -> Callable[..., int] | None:
    """Return a function of the C library, None if it has none of this name.

    The function returns an int, and its error is `ctypes.get_errno()`.
    """
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes, function.restype = arguments, ctypes.c_int
    found: Callable[..., int] = function
    return found
