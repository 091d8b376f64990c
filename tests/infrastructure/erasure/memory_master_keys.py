"""Master keys in the memory of this process."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from cryptography.fernet import Fernet, InvalidToken

from infrastructure.erasure.keyring import Keyring
from infrastructure.erasure.master_keys import NoMasterKey
from infrastructure.erasure.wrapped_keys import ensure_master_key
from infrastructure.postgres.pool import Pool


class MemoryMasterKeys:
    """The port `MasterKeys`."""

    def __init__(self) -> None:
        self.keys: dict[str, Fernet] = {}

    async def create(self) -> str:
        id = uuid4().hex
        self.keys[id] = Fernet(Fernet.generate_key())
        return id

    async def encrypt(self, id: str, contents: Sequence[bytes]) -> list[bytes]:
        return [self._key(id).encrypt(content) for content in contents]

    async def decrypt(self, id: str, contents: Sequence[bytes]) -> list[bytes]:
        try:
            return [self._key(id).decrypt(content) for content in contents]
        except InvalidToken:
            raise NoMasterKey(f"{id} does not open it") from None

    async def destroy(self, id: str) -> None:
        self.keys.pop(id, None)

    def _key(self, id: str) -> Fernet:
        if id not in self.keys:
            raise NoMasterKey(f"the master key {id} is not here")
        return self.keys[id]


MASTERS = MemoryMasterKeys()
"""Master keys of all databases of this process: copies of a database share them."""


async def keyring_on(pool: Pool) -> Keyring:
    """A keyring, as a process has it once it has started."""
    async with pool.connection() as connection:
        await ensure_master_key(connection, MASTERS)
    return Keyring(pool, MASTERS)
