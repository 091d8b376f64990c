"""Master keys: outside of the database, they encrypt the keys of owners that are in it.

A copy of the database's files, of its WAL or of a backup of it opens nothing without them. Each has
an id; which one is current is in the database. To destroy a master key is to destroy every copy,
wherever it is, of what it encrypted.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from uuid import UUID

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infrastructure import files
from infrastructure.settings import Settings

# Backup copies of owners' keys, encrypted with and stored next to a master key.
#
# A master key is destroyed when an owner is erased, so that backups of the database from before
# cannot be read by themselves. The copy made at that moment has the same keys, but the erased
# owner's, under the new master key.

SUFFIX = ".owners"


class OwnerKeyCopy(msgspec.Struct, frozen=True):
    """Keys of owners by id, the master key that encrypts them, and those that it replaced."""

    master: str
    proof: bytes
    replaced: list[str]
    keys: list[tuple[UUID, bytes]]


class OwnerKeyCopies:
    """Storage of the newest copy, in the folder of the master keys."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, copy: OwnerKeyCopy) -> None:
        """Keep this copy, durably, and remove earlier ones. Raises OSError."""
        file = self._folder / f"{sanitized(copy.master)}{SUFFIX}"
        files.write_file_atomically(file, msgspec.json.encode(copy))
        for earlier in self._folder.glob(f"*{SUFFIX}"):
            if earlier != file:
                files.discard(earlier)

    def replacing(self, master: str) -> OwnerKeyCopy | None:
        """Return the copy whose master key directly or indirectly replaced this one."""
        for file in self._folder.glob(f"*{SUFFIX}"):
            try:
                copy = msgspec.json.decode(file.read_bytes(), type=OwnerKeyCopy)
            except (OSError, msgspec.MsgspecError):
                continue
            if master in copy.replaced:
                return copy
        return None


def sanitized(id: str) -> str:
    """Return a key id of a KMS as part of a file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in id)[-100:]


NONCE_BYTES = 12  # bytes
COMMAND_TIMEOUT = 30.0  # seconds for one run of the user's command
MAX_ID = 200  # characters

_log = structlog.get_logger(__name__)


class NoMasterKey(Exception):
    """Raised if a required master key is missing, or does not decrypt its data."""

    hint = (
        "set master_keys to the folder that the first process used (share it between machines), or"
        " master_key_command to the same command: see docs/audit.md, Erase"
    )


class MasterKeys(Protocol):
    """Store of master keys. All methods raise NoMasterKey."""

    async def create(self) -> str:
        """Make a key, durably, and return its id."""

    async def encrypt(self, id: str, contents: Sequence[bytes]) -> list[bytes]:
        """Encrypt each with the key of this id."""

    async def decrypt(self, id: str, contents: Sequence[bytes]) -> list[bytes]:
        """Decrypt each with the key of this id."""

    async def destroy(self, id: str) -> None:
        """Destroy the key for good. Idempotent."""


class FileMasterKeys:
    """Master keys (AES-256-GCM, NIST SP 800-38D) in files (0600) of a folder (0700)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def create(self) -> str:
        return await asyncio.to_thread(self._create)

    async def encrypt(self, id: str, contents: Sequence[bytes]) -> list[bytes]:
        key = await asyncio.to_thread(self._read, id)
        nonces = (os.urandom(NONCE_BYTES) for _ in contents)
        return [
            nonce + key.encrypt(nonce, content, None)
            for nonce, content in zip(nonces, contents, strict=False)
        ]

    async def decrypt(self, id: str, contents: Sequence[bytes]) -> list[bytes]:
        key = await asyncio.to_thread(self._read, id)
        try:
            return [
                key.decrypt(content[:NONCE_BYTES], content[NONCE_BYTES:], None)
                for content in contents
            ]
        except (InvalidTag, ValueError):
            raise NoMasterKey(f"the master key {id} does not open what it encrypted") from None

    async def destroy(self, id: str) -> None:
        await asyncio.to_thread(self._destroy, id)

    def _create(self) -> str:
        id = secrets.token_hex(8)
        try:
            content = b64encode(AESGCM.generate_key(256)) + b"\n"
            files.write_file_atomically(self._file(id), content, replace=False)
        except OSError as error:
            raise NoMasterKey(f"no master key can be made in {self.folder}: {error}") from error
        _log.info("master_key_made", id=id, folder=str(self.folder))
        return id

    def _read(self, id: str) -> AESGCM:
        try:
            return AESGCM(b64decode(self._file(id).read_bytes(), validate=False))
        except FileNotFoundError:
            raise NoMasterKey(f"the master key {id} is not in {self.folder}") from None
        except (OSError, ValueError) as error:
            raise NoMasterKey(f"{self._file(id)} cannot be used: {error}") from error

    def _destroy(self, id: str) -> None:
        """Overwrite the file before deleting it: its blocks may stay on the disk for long."""
        file = self._file(id)
        try:
            with suppress(FileNotFoundError):
                descriptor = files.open_file(file, os.O_WRONLY)
                try:
                    files.write_at(descriptor, bytes(os.fstat(descriptor).st_size), 0)
                    files.sync(descriptor)
                finally:
                    os.close(descriptor)
                files.unlink(file)
            files.sync_folder(self.folder)
        except OSError as error:
            raise NoMasterKey(f"{file} cannot be destroyed: {error}") from error
        _log.info("master_key_destroyed", id=id, folder=str(self.folder))

    def _file(self, id: str) -> Path:
        if not id.isalnum():
            raise NoMasterKey(f"{id!r} is no id of a master key in a file")
        return self.folder / f"{id}.key"


class CommandMasterKeys:
    """Master keys in a KMS or HSM, used with a configured command.

    The command is run as `COMMAND ACTION [ID]`.

    `create` prints the id of a new key; `encrypt ID` and `decrypt ID` read lines of base64 and
    print as many; `destroy ID` destroys, also what is destroyed already. Exit code 0 is success.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)

    async def create(self) -> str:
        id = (await self._run("create")).decode(errors="replace").strip()
        if not id or len(id) > MAX_ID or not id.isprintable():
            raise NoMasterKey(f"`{self._command[0]} create` must print the id of a key")
        return id

    async def encrypt(self, id: str, contents: Sequence[bytes]) -> list[bytes]:
        return await self._convert("encrypt", id, contents)

    async def decrypt(self, id: str, contents: Sequence[bytes]) -> list[bytes]:
        return await self._convert("decrypt", id, contents)

    async def destroy(self, id: str) -> None:
        await self._run("destroy", id)

    async def _convert(self, action: str, id: str, contents: Sequence[bytes]) -> list[bytes]:
        lines = b"".join(b64encode(content) + b"\n" for content in contents)
        printed = (await self._run(action, id, stdin=lines)).split()
        try:
            if len(printed) != len(contents):
                raise ValueError(f"it printed {len(printed)} lines for {len(contents)}")
            return [b64decode(line, validate=True) for line in printed]
        except ValueError as error:
            raise NoMasterKey(f"`{self._command[0]} {action}` answers wrongly: {error}") from None

    async def _run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        name = f"`{self._command[0]} {arguments[0]}`"
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, *arguments, stdin=pipe, stdout=pipe, stderr=pipe
            )
        except OSError as error:
            raise NoMasterKey(f"{name} cannot be run: {error}") from error
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                printed, complaint = await process.communicate(stdin)
        except TimeoutError:
            raise NoMasterKey(f"{name} did not end within {COMMAND_TIMEOUT:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            why = complaint.decode(errors="replace").strip()[-500:]
            raise NoMasterKey(f"{name} failed with exit code {process.returncode}: {why}")
        return printed


def master_keys_of(settings: Settings) -> MasterKeys:
    """Return the configured command's store, or the folder's if none is set."""
    if settings.master_key_command:
        return CommandMasterKeys(settings.master_key_command)
    return FileMasterKeys(settings.master_key_folder)
