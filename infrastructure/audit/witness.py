"""What a machine remembers of the last seal it made: a file beside the database, not in it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec
import structlog

from application.audit.seal import Seal

_log = structlog.get_logger(__name__)


class Seen(msgspec.Struct, frozen=True):
    """The number of a seal, its digest, and how far it reached."""

    number: int
    digest: bytes
    through: int


class Witness:
    """Reads and writes the file. Somebody who can write to the database alone does not reach it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def seen(self) -> Seen | None:
        """The last seal that was made here; None if none was, or the file is unreadable."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Seen)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            _log.error("seal_witness_unreadable", file=str(self._file), error=str(error))
            return None

    def see(self, seal: Seal) -> None:
        """Remembers this seal, durably. Raises OSError."""
        draft = self._file.with_name(f".{self._file.name}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(msgspec.json.encode(Seen(seal.number, seal.digest, seal.through)))
                opened.flush()
                os.fsync(descriptor)
            draft.replace(self._file)
        finally:
            draft.unlink(missing_ok=True)
