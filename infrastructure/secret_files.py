"""Files with secrets in them, which nobody but their owner can ever open."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_secret(file: Path, content: bytes, *, replace: bool) -> bool:
    """Whether the file now holds this: it appears whole, or is somebody else's already.

    The file is made with its final mode: there is no moment at which others could open it.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(descriptor)
        if replace:
            draft.replace(file)
        else:
            os.link(draft, file)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True
