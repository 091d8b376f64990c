"""A disk that loses its power: what it was asked for, and every state it may be in afterwards.

`RecordingDisk` takes the place of the functions of `infrastructure.files`. The operations are
performed on a real folder and recorded; only syncs are recorded alone. From the record follow the
states after a power loss at any point, as in Pillai et al., "All File Systems Are Not Created
Equal" (OSDI 2014). The model is POSIX without the kindness of any file system:

- Bytes and sizes are durable after `sync` or `sync_data` of the file returned, if they were written
  before it was called. Otherwise each write may be there, be missing, end at a sector, or be zeros
  (the size was persisted, the data was not), independently of all others.
- Names are durable after `sync_folder`. Otherwise each name may have any value that it had since,
  independently of all others: also the two names of a rename. A folder that is renamed has one.
- A sync that fails loses the file's unsynced writes for good: the kernel reports an error once and
  takes the pages for clean (fsyncgate), so a later sync that succeeds does not cover them.

Files made by other programs (initdb) are taken as durable from the moment they are first met.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import RLock
from typing import Any

import pytest

from infrastructure import files
from infrastructure.blobs.local.kernel_sync import KernelSync

SECTOR, BLOCK = 512, 4096
RANDOM_STATES = 6  # for each point of the power loss, beside those that are enumerated

Node = int  # a file, folder or symbolic link, whatever its names


@dataclass(frozen=True)
class Named:
    """A name of a folder was given to a node, or removed."""

    folder: Node
    name: str
    node: Node | None


@dataclass(frozen=True)
class Written:
    """Bytes of a file were set."""

    node: Node
    offset: int
    content: bytes
    extends: bool  # the file; blocks that it had before are never zeros


@dataclass(frozen=True)
class Punched(Written):
    """Blocks of a file were freed: each is there or not, as a whole."""


@dataclass(frozen=True)
class Resized:
    """A file was cut or extended."""

    node: Node
    size: int


@dataclass(frozen=True)
class Synced:
    """A sync returned: it covers the operations before `begin`, or fails them for good."""

    node: Node
    begin: int
    failed: bool


Operation = Named | Written | Resized | Synced


@dataclass
class Tree:
    """What the disk holds: folders by node, contents of files, targets of symbolic links."""

    folders: dict[Node, dict[str, Node]] = field(default_factory=dict)
    contents: dict[Node, bytes] = field(default_factory=dict)
    links: dict[Node, str] = field(default_factory=dict)

    def copy(self) -> Tree:
        names = {folder: dict(entries) for folder, entries in self.folders.items()}
        return Tree(names, dict(self.contents), dict(self.links))

    def listing(self, folder: Node = 0, above: str = "") -> dict[str, tuple[str, Any]]:
        """Return what can be reached by path, in a form that can be compared."""
        found: dict[str, tuple[str, Any]] = {}
        for name, node in sorted(self.folders[folder].items()):
            path = f"{above}{name}"
            if node in self.folders:
                found[path] = ("folder", None)
                found |= self.listing(node, f"{path}/")
            elif node in self.links:
                found[path] = ("link", self.links[node])
            else:
                found[path] = ("file", self.contents[node])
        return found

    def materialise(self, place: Path) -> None:
        """Make this the content of a folder, which is replaced."""
        with suppress(FileNotFoundError):
            shutil.rmtree(place)
        self._make(0, place, {})

    def _make(self, node: Node, place: Path, made: dict[Node, Path]) -> None:
        if node in self.folders:
            place.mkdir(mode=0o700)
            for name, child in self.folders[node].items():
                self._make(child, place / name, made)
        elif node in self.links:
            place.symlink_to(self.links[node])
        elif node in made:
            place.hardlink_to(made[node])
        else:
            place.touch(0o600)
            place.write_bytes(self.contents[node])
            made[node] = place


@dataclass(frozen=True)
class State:
    """A state of the disk after a power loss: `at` operations had been asked for."""

    at: int
    what: str
    tree: Tree


class RecordingDisk:
    """Double of `infrastructure.files` for one folder; what is elsewhere is not recorded."""

    def __init__(self, root: Path) -> None:
        """What the folder holds now is durable."""
        self.root = root.resolve()
        self.operations: list[Operation] = []
        self._failures: dict[str, int] = {}
        self._lock = RLock()
        self._nodes: dict[tuple[int, int], Node] = {}
        self._first = Tree()
        self._count = 0
        self._meet(self.root)

    def install(self, patch: pytest.MonkeyPatch) -> RecordingDisk:
        """Take the place of the product's functions until the patch is undone."""
        for name in (
            *("open_file", "write", "write_at", "truncate", "punch_hole", "write_out"),
            *("link", "rename", "unlink", "symlink", "mkdir", "rmdir", "remove_tree"),
            *("sync", "sync_data", "sync_folder"),
        ):
            patch.setattr(files, name, getattr(self, name))
        self._submit: Callable[..., asyncio.Future[None] | None] = KernelSync.submit
        patch.setattr(KernelSync, "submit", self._kernel_sync())
        return self

    @property
    def position(self) -> int:
        """Operations so far. What is acknowledged now must survive a power loss from here on."""
        return len(self.operations)

    def lose_power(self) -> None:
        """Record nothing from now on: the machine is off."""
        self._nodes.clear()

    def fail_next(self, operation: str, *, after: int = 0) -> None:
        """Let the next call of this function but `after` fail with an I/O error.

        A failed sync of a file loses what it should cover.
        """
        self._failures[operation] = after

    # Functions of `infrastructure.files`.

    def open_file(self, path: Any, flags: int, mode: int = 0o777) -> int:
        with self._lock:
            self._fail("open_file")
            exists = os.path.lexists(path)
            descriptor = os.open(path, flags, mode)
            if not exists and self._folder(path) is not None:
                self._name(path, self._new(os.fstat(descriptor)))
            elif flags & os.O_TRUNC and (node := self._node(descriptor)) is not None:
                self.operations.append(Resized(node, 0))
            return descriptor

    def write(self, descriptor: int, content: Any) -> int:
        with self._lock:
            self._fail("write")
            offset, size = os.lseek(descriptor, 0, os.SEEK_CUR), os.fstat(descriptor).st_size
            written = os.write(descriptor, content)
            self._wrote(descriptor, offset, bytes(content[:written]), size)
            return written

    def write_at(self, descriptor: int, content: Any, offset: int) -> int:
        with self._lock:
            self._fail("write_at")
            size = os.fstat(descriptor).st_size
            written = os.pwrite(descriptor, content, offset)
            self._wrote(descriptor, offset, bytes(content[:written]), size)
            return written

    def truncate(self, file: Any, size: int) -> None:
        with self._lock:
            self._fail("truncate")
            os.truncate(file, size)
            if (node := self._node(file)) is not None:
                self.operations.append(Resized(node, size))

    def punch_hole(self, descriptor: int, start: int, length: int) -> bool:
        with self._lock:
            self._fail("punch_hole")
            done = _PUNCH_HOLE(descriptor, start, length)
            if done:
                end = min(start + length, os.fstat(descriptor).st_size)
                if (node := self._node(descriptor)) is not None and start < end:
                    self.operations.append(Punched(node, start, bytes(end - start), extends=False))
            return done

    def write_out(self, descriptor: int, start: int, end: int) -> None:
        with self._lock:
            try:
                self._fail("write_out")
            except OSError:
                self._synced(self._node(descriptor), self.position, failed=True)
                raise

    def link(self, source: Any, target: Any) -> None:
        with self._lock:
            os.link(source, target)
            self._name(target, self._node(target))

    def rename(self, source: Any, target: Any) -> None:
        with self._lock:
            self._fail("rename")
            node = self._node(source)
            if node is None and self._folder(source) is not None:
                node = self._meet(Path(source))
            os.rename(source, target)
            self._name(target, node)
            if node not in self._first.folders:  # a folder has one name: see `_tree`
                self._name(source, None)

    def unlink(self, path: Any) -> None:
        with self._lock:
            self._fail("unlink")
            os.unlink(path)
            self._name(path, None)

    def symlink(self, target: Any, path: Any) -> None:
        with self._lock:
            os.symlink(target, path)
            if self._folder(path) is not None:
                node = self._new(os.lstat(path))
                self._first.links[node] = str(target)
                self._name(path, node)

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        with self._lock:
            self._fail("mkdir")
            os.mkdir(path, mode)
            if self._folder(path) is not None:
                node = self._new(os.lstat(path))
                self._first.folders[node] = {}
                self._name(path, node)

    def rmdir(self, path: Any) -> None:
        with self._lock:
            os.rmdir(path)
            self._name(path, None)

    def remove_tree(self, path: Any) -> None:
        """Every name goes by itself, from the inside."""
        for folder, names, found in os.walk(path, topdown=False):
            for name in found:
                self.unlink(os.path.join(folder, name))
            for name in names:
                self.rmdir(os.path.join(folder, name))
        self.rmdir(path)

    def sync(self, descriptor: int, operation: str = "sync") -> None:
        with self._lock:
            begin, node = self.position, self._node(descriptor)
            try:
                self._fail(operation)
            except OSError:
                self._synced(node, begin, failed=True)
                raise
            self._synced(node, begin)

    def sync_data(self, descriptor: int) -> None:
        self.sync(descriptor, "sync_data")

    def sync_folder(self, folder: Any) -> None:
        with self._lock:
            begin, node = self.position, self._node(folder)
            self._fail("sync_folder")  # what is unsynced stays so: names are not lost by an error
            if not os.path.isdir(folder):
                os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))  # raises what it should
            self._synced(node, begin)

    def _kernel_sync(self) -> Callable[..., asyncio.Future[None] | None]:
        disk = self

        def submit(kernel: KernelSync, descriptor: int) -> asyncio.Future[None] | None:
            with disk._lock:
                begin, node = disk.position, disk._node(descriptor)
            try:
                disk._fail("sync_data")
            except OSError as error:
                disk._synced(node, begin, failed=True)
                failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                failed.set_exception(error)
                return failed
            syncing = disk._submit(kernel, descriptor)
            if syncing is not None:
                syncing.add_done_callback(lambda _: disk._synced(node, begin))
            return syncing

        return submit

    # The record.

    def _fail(self, operation: str) -> None:
        left = self._failures.pop(operation, None)
        if left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if left is not None:
            self._failures[operation] = left - 1

    def _synced(self, node: Node | None, begin: int, *, failed: bool = False) -> None:
        if node is not None:
            self.operations.append(Synced(node, begin, failed))

    def _wrote(self, descriptor: int, offset: int, content: bytes, size: int) -> None:
        if (node := self._node(descriptor)) is not None and content:
            extends = offset + len(content) > size
            self.operations.append(Written(node, offset, content, extends))

    def _name(self, path: Any, node: Node | None) -> None:
        if (folder := self._folder(path)) is not None:
            self.operations.append(Named(folder, os.path.basename(path), node))

    def _folder(self, path: Any) -> Node | None:
        return self._node(os.path.dirname(path))

    def _node(self, file: Any) -> Node | None:
        found = os.fstat(file) if isinstance(file, int) else os.lstat(file)
        if not isinstance(file, int) and stat.S_ISLNK(found.st_mode):
            found = os.stat(file)
        return self._nodes.get((found.st_dev, found.st_ino))

    def _new(self, found: os.stat_result) -> Node:
        node = self._nodes[found.st_dev, found.st_ino] = self._count
        self._count += 1
        if stat.S_ISREG(found.st_mode):
            self._first.contents[node] = b""
        return node

    def _meet(self, path: Path) -> Node:
        """Take in, as durable, what is there and was not made through us."""
        found = path.lstat()
        known = self._nodes.get((found.st_dev, found.st_ino))
        node = self._new(found) if known is None else known
        if path.is_symlink():
            self._first.links[node] = os.readlink(path)
        elif path.is_dir():
            self._first.folders[node] = {each.name: self._meet(each) for each in path.iterdir()}
        else:
            self._first.contents[node] = path.read_bytes()
        return node

    # The states.

    def actual(self) -> dict[str, tuple[str, Any]]:
        """Return what the real folder holds, as `Tree.listing` does."""
        return RecordingDisk(self.root)._first.listing()

    def written(self) -> Tree:
        """Return what the disk holds if every operation is persisted."""
        return self._tree(self.position, frozenset(), {})

    def states(self, at: int, seed: int = 0) -> Iterator[State]:
        """Yield the states after a power loss when `at` operations had been asked for.

        All of them: nothing unsynced is there; each operation alone is missing, or alone is there;
        everything before each of them; each write torn, or zeros. And a few random ones.
        """
        pending = self._pending(at)
        none = frozenset(pending)
        seen: set[int] = set()

        def state(
            what: str, dropped: frozenset[int], torn: dict[int, bytes] | None = None
        ) -> Iterator[State]:
            tree = self._tree(at, dropped, torn or {})
            digest = hash(tuple(sorted(tree.listing().items())))
            if digest not in seen:
                seen.add(digest)
                yield State(at, what, tree)

        yield from state("all is there", frozenset())
        yield from state("nothing unsynced is there", none)
        for place, index in enumerate(pending):
            yield from state(f"without {index}", frozenset({index}))
            yield from state(f"only {index}", none - {index})
            yield from state(f"nothing from {index} on", frozenset(pending[place:]))
            for how, torn in self._torn(index):
                yield from state(f"{index} {how}", frozenset(), {index: torn})
                yield from state(f"only {index}, {how}", none - {index}, {index: torn})
        random = Random(f"{seed}:{at}")
        for number in range(RANDOM_STATES if len(pending) > 2 else 0):
            dropped = frozenset(index for index in pending if random.random() < 0.5)
            kinds = {i: random.choice(self._torn(i)) for i in pending if self._torn(i)}
            some = {i: torn for i, (_, torn) in kinds.items() if random.random() < 0.5}
            yield from state(f"random {number}", dropped, some)

    def _pending(self, at: int) -> list[int]:
        """Return the operations that a power loss may undo."""
        durable: set[int] = set()
        lost: set[int] = set()
        for operation in self.operations[:at]:
            if isinstance(operation, Synced):
                covered = {
                    index
                    for index, earlier in enumerate(self.operations[: operation.begin])
                    if operation.node == _changed(earlier)
                }
                if operation.failed:
                    lost |= covered - durable
                else:
                    durable |= covered - lost
        return [
            index
            for index, operation in enumerate(self.operations[:at])
            if not isinstance(operation, Synced) and index not in durable
        ]

    def _torn(self, index: int) -> list[tuple[str, bytes]]:
        """Return what may be left of a write that was under way."""
        operation = self.operations[index]
        if not isinstance(operation, Written):
            return []
        size, start = len(operation.content), operation.offset
        is_hole = isinstance(operation, Punched)
        found = [("as zeros", bytes(size))] if operation.extends else []
        for unit in (BLOCK,) if is_hole else (SECTOR, BLOCK):
            first = -(start + 1) % unit + 1
            last = size - ((start + size - 1) % unit + 1)
            for cut in {first, last}:
                if 0 < cut < size:
                    kept = operation.content[:cut]
                    found.append((f"ends at {cut}", kept))
                    if operation.extends:
                        found.append((f"has zeros from {cut} on", kept.ljust(size, b"\0")))
        return found

    def _tree(self, at: int, dropped: frozenset[int], torn: dict[int, bytes]) -> Tree:
        tree = self._first.copy()
        for index, operation in enumerate(self.operations[:at]):
            if index in dropped:
                continue
            match operation:
                case Named(folder, name, None):
                    tree.folders[folder].pop(name, None)
                case Named(folder, name, node):
                    if node in tree.folders:
                        for entries in tree.folders.values():
                            for other in [each for each in entries if entries[each] == node]:
                                del entries[other]
                    tree.folders[folder][name] = node
                case Written(node, offset, content, _):
                    content = torn.get(index, content)
                    old = tree.contents[node].ljust(offset, b"\0")
                    tree.contents[node] = old[:offset] + content + old[offset + len(content) :]
                case Resized(node, size):
                    tree.contents[node] = tree.contents[node][:size].ljust(size, b"\0")
                case _:
                    pass
        return tree


_PUNCH_HOLE = files.punch_hole


def _changed(operation: Operation) -> Node | None:
    """Return the node whose sync makes this operation durable."""
    if isinstance(operation, Named):
        return operation.folder
    return None if isinstance(operation, Synced) else operation.node
