"""What an upload must remember to go on after a kill: one small file, written before the start."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import msgspec

from interfaces.cli.errors import CommandError


class Remembered(msgspec.Struct):
    """The idempotency key by which the server knows the batch, whatever was answered of it."""

    key: str
    server: str
    roots: list[str]
    label: str
    pipeline: str


class Memory:
    """The file of one upload, named after server, roots, label and pipeline."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def recall(self) -> Remembered | None:
        with suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode(self.path.read_bytes(), type=Remembered)
        return None

    def keep(self, remembered: Remembered) -> None:
        """Durable when this returns."""
        draft = self.path.with_suffix(".new")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(remembered))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


@contextmanager
def memory_of(
    data_dir: Path, server: str, roots: Iterable[Path], label: str, pipeline: str
) -> Iterator[tuple[Memory, Remembered, bool]]:
    """The memory of this very command, what it holds, and whether that is from an earlier run.

    Held by one process at a time. Raises CommandError while another has it.
    """
    names = sorted(str(root) for root in roots)
    identity = msgspec.json.encode([server, names, label, pipeline])
    folder = data_dir / "resume"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{sha256(identity).hexdigest()[:24]}.json"
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                "the same upload runs already in another process",
                "wait for it, or give this one another --label",
            ) from None
        memory = Memory(path)
        known = memory.recall()
        if known is None:
            remembered = Remembered(uuid4().hex, server, names, label, pipeline)
            memory.keep(remembered)
        yield memory, known or remembered, known is not None
