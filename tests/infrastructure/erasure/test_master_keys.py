"""Keys of owners are useless without a master key, which is replaced when an owner is erased."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from application.append import Append, StreamAppend
from application.errors import Unavailable
from infrastructure.erasure import keyring as keyring_module
from infrastructure.erasure import wrapped_keys
from infrastructure.erasure.keyring import Keyring
from infrastructure.erasure.master_keys import (
    CommandMasterKeys,
    FileMasterKeys,
    MasterKeys,
    NoMasterKey,
    OwnerKeyCopies,
    OwnerKeyCopy,
)
from infrastructure.erasure.wrapped_keys import destroy_masters_of, ensure_master_key
from infrastructure.event_store.codec import Codec
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.postgres.schema import migrate
from tests.builders import registered
from tests.infrastructure.erasure.memory_master_keys import MemoryMasterKeys
from tests.infrastructure.event_store.log_support import connected
from tests.infrastructure.postgres.old_databases import migrate_to
from tests.support import execute

DESTROY = """UPDATE audit.owner_keys SET wrapped = NULL, destroyed_at = now()
WHERE owner = %s AND destroyed_at IS NULL"""

COMMAND = """
import base64, pathlib, secrets, sys
folder, action, *rest = pathlib.Path(sys.argv[1]), *sys.argv[2:]
if action == "create":
    id = secrets.token_hex(4)
    (folder / id).write_bytes(secrets.token_bytes(64))
    print(id)
elif action == "destroy":
    (folder / rest[0]).unlink(missing_ok=True)
else:
    pad = (folder / rest[0]).read_bytes()
    for line in sys.stdin:
        content = base64.b64decode(line)
        print(base64.b64encode(bytes(a ^ b for a, b in zip(content, pad * 9))).decode())
"""


def by_command(folder: Path) -> CommandMasterKeys:
    script = folder / "kms.py"
    script.write_text(COMMAND)
    keys = folder / "kms"
    keys.mkdir(exist_ok=True)
    return CommandMasterKeys((sys.executable, str(script), str(keys)))


def in_files(folder: Path) -> FileMasterKeys:
    return FileMasterKeys(folder / "master-keys")


async def recorded(url: str, masters: MasterKeys, *owners: str) -> None:
    """Record one upload of each owner, by a process of its own."""
    async with opened(url, masters) as log:
        for owner in owners:
            event = registered(owner=owner, path=f"secret of {owner}")
            await log.append(Append((StreamAppend(uuid4(), 0, (event,)),)))


async def paths(url: str, masters: MasterKeys) -> set[str]:
    async with opened(url, masters) as log:
        return {event.event.path for event in await log.read(0, limit=1000)}  # type: ignore[union-attr]


class opened:
    """A log with keys, once its process has started."""

    def __init__(self, url: str, masters: MasterKeys) -> None:
        self._url = url
        self._masters = masters

    async def __aenter__(self) -> PostgresEventLog:
        self._pool = make_pool(self._url, name="test", max_size=4)
        await self._pool.__aenter__()
        async with self._pool.connection() as connection:
            await ensure_master_key(connection, self._masters)
        codec = Codec(encryption=Keyring(self._pool, self._masters))
        self._committer = GroupCommitter(self._url, codec=codec)
        await self._committer.__aenter__()
        return PostgresEventLog(self._pool, self._committer, codec=codec)

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._committer.__aexit__(*exc_info)
        await self._pool.__aexit__(*exc_info)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.mark.parametrize("kept", [in_files, by_command])
async def test_an_erasure_replaces_the_master_key_and_leaves_the_others_readable(
    database_url: str, tmp_path: Path, kept: Callable[[Path], MasterKeys]
) -> None:
    masters = kept(tmp_path)
    await recorded(database_url, masters, "acme", "globex")
    before = rows(database_url, "SELECT id, wrapped, master FROM audit.owner_keys")
    execute(database_url, DESTROY, "acme")

    async with connected(database_url) as connection:
        await destroy_masters_of(connection, masters, "acme")

    assert await paths(database_url, masters) == {"", "secret of globex"}
    for _, wrapped, master in before:  # what lies in old pages, in the WAL, in a backup
        with pytest.raises(NoMasterKey):
            await masters.decrypt(master, [wrapped])
    await recorded(database_url, masters, "acme")  # with a new key
    assert await paths(database_url, masters) == {"", "secret of globex", "secret of acme"}


async def test_no_key_of_an_owner_is_in_the_database(database_url: str, tmp_path: Path) -> None:
    await recorded(database_url, in_files(tmp_path), "acme")

    ((id, unwrapped, wrapped, master),) = rows(
        database_url, "SELECT id, unwrapped, wrapped, master FROM audit.owner_keys"
    )
    (content,) = await in_files(tmp_path).decrypt(master, [wrapped])
    assert unwrapped is None
    assert content.startswith(id.bytes)
    assert content[16:] not in wrapped


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
async def test_a_master_key_in_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "master-keys"

    id = await FileMasterKeys(folder).create()

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [file.name for file in folder.iterdir()] == [f"{id}.key"]
    assert stat.S_IMODE((folder / f"{id}.key").stat().st_mode) == 0o600


class Crash(BaseException):
    """The process is killed."""


class Fragile:
    """Counts steps, and is killed before the one of this number; None: never."""

    def __init__(self, before: int | None) -> None:
        self.before = before
        self.steps = 0

    def step(self) -> None:
        if self.before is not None and self.steps >= self.before:
            raise Crash
        self.steps += 1

    def wrap(self, target: Any, *names: str) -> Any:
        outer = self

        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                found = getattr(target, name)
                if name not in names:
                    return found

                async def call(*arguments: Any, **more: Any) -> Any:
                    outer.step()
                    result = await found(*arguments, **more)
                    outer.step()
                    return result

                return call

        return Wrapped()


async def test_a_replacement_that_is_killed_anywhere_is_finished_by_the_next(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each statement and each use of a master key."""
    monkeypatch.setattr(wrapped_keys, "KEYS_PER_CHUNK", 2)

    masters, kills = MemoryMasterKeys(), 0
    async with make_pool(database_url, name="test", max_size=2) as pool:
        async with pool.connection() as connection:
            await ensure_master_key(connection, masters)
        while await _killed_once(database_url, pool, masters, kills):
            kills += 1
    assert kills > 15


async def _killed_once(url: str, pool: Pool, masters: MemoryMasterKeys, kills: int) -> bool:
    """Whether the replacement was killed before this step, and was finished by the next."""
    owners = ["erased", "living-1", "living-2", "living-3"]
    ring = Keyring(pool, masters)
    await ring.prepare(owners, ())
    boxes = {owner: ring.encrypt(owner, b"secret") for owner in owners}
    ((wrapped, old),) = rows(
        url, "SELECT wrapped, master FROM audit.owner_keys WHERE owner = 'erased'"
    )
    execute(url, DESTROY, "erased")
    try:
        await _destroy(url, Fragile(kills), masters, "erased")
    except Crash:
        killed = True
    else:
        killed = False
    await Keyring(pool, masters).prepare(["new"], ())  # others go on meanwhile
    async with connected(url) as connection:
        await destroy_masters_of(connection, masters, "erased")
    assert old not in masters.keys
    with pytest.raises(NoMasterKey):
        await masters.decrypt(old, [wrapped])
    later = Keyring(pool, masters)
    await later.load_keys([box.key for box in boxes.values()])
    opened_now = {owner: later.decrypt(box) for owner, box in boxes.items()}
    assert opened_now == {**dict.fromkeys(owners, b"secret"), "erased": None}
    execute(url, "DELETE FROM audit.owner_keys")
    return killed


async def _destroy(url: str, fragile: Fragile, masters: MemoryMasterKeys, owner: str) -> None:
    async with connected(url) as connection:
        breaking: Any = fragile.wrap(connection, "execute")
        keys: Any = fragile.wrap(masters, "create", "encrypt", "decrypt", "destroy")
        await destroy_masters_of(breaking, keys, owner)


async def test_keys_that_are_made_during_a_replacement_stay_readable(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_module, "KEY_CACHE_SECONDS", -1.0)

    masters = MemoryMasterKeys()
    async with opened(database_url, masters) as log, connected(database_url) as connection:

        async def record(number: int) -> None:
            event = registered(owner=f"owner-{number}", path=f"path {number}")
            await log.append(Append((StreamAppend(uuid4(), 0, (event,)),)))

        async def replace() -> None:
            for number in range(5):
                execute(database_url, DESTROY, f"owner-{number}")
                await destroy_masters_of(connection, masters, f"owner-{number}")

        await asyncio.gather(*(record(number) for number in range(5)))
        await asyncio.gather(replace(), *(record(number) for number in range(5, 45)))

    assert await paths(database_url, masters) == {"", *(f"path {n}" for n in range(5, 45))}
    assert len(masters.keys) == 1


async def test_a_machine_without_the_master_key_does_not_start(
    connection: Connection, tmp_path: Path
) -> None:
    await ensure_master_key(connection, in_files(tmp_path))
    await ensure_master_key(connection, in_files(tmp_path))
    with pytest.raises(NoMasterKey, match=r"is not in .*elsewhere"):
        await ensure_master_key(connection, in_files(tmp_path / "elsewhere"))


async def test_a_file_with_another_key_is_refused(connection: Connection, tmp_path: Path) -> None:
    masters = in_files(tmp_path)
    await ensure_master_key(connection, masters)
    (file,) = masters.folder.iterdir()
    other = await masters.create()
    (masters.folder / f"{other}.key").replace(file)
    with pytest.raises(NoMasterKey, match="does not open"):
        await ensure_master_key(connection, masters)


async def test_processes_that_start_at_once_share_one_master_key(
    database_url: str, tmp_path: Path
) -> None:
    async def start(connection: Connection) -> None:
        await ensure_master_key(connection, in_files(tmp_path))

    async with connected(database_url) as one, connected(database_url) as two:
        await asyncio.gather(start(one), start(two))
    ((id,),) = rows(database_url, "SELECT id FROM audit.master_keys")
    assert [file.stem for file in (tmp_path / "master-keys").iterdir()] == [id]


async def test_keys_of_two_owners_that_were_swapped_are_not_used(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_module, "RETRY_PAUSE", 0.0)
    masters = in_files(tmp_path)
    await recorded(database_url, masters, "acme")
    await recorded(database_url, masters, "rival")
    swap = """UPDATE audit.owner_keys k SET wrapped = other.wrapped
    FROM audit.owner_keys other WHERE other.id <> k.id"""
    with psycopg.connect(database_url) as connection:
        assert connection.execute(swap).rowcount == 2

    async with opened(database_url, masters) as log:
        with pytest.raises(Unavailable, match="cannot be opened"):
            await log.read(0, limit=10)


async def test_a_master_key_that_is_lost_makes_events_unavailable_and_not_erased(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_module, "RETRY_PAUSE", 0.0)
    masters = in_files(tmp_path)
    await recorded(database_url, masters, "acme")

    async with opened(database_url, masters) as log:
        for file in masters.folder.iterdir():
            file.unlink()
        with pytest.raises(Unavailable, match="cannot be opened"):
            await log.read(0, limit=10)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("/no/such/command",), "cannot be run"),
        ((sys.executable, "-c", "import sys; sys.exit('no access')"), "no access"),
        ((sys.executable, "-c", ""), "must print the id"),
    ],
)
async def test_a_command_that_fails_is_quoted(command: tuple[str, ...], problem: str) -> None:
    with pytest.raises(NoMasterKey, match=problem):
        await CommandMasterKeys(command).create()


async def test_a_command_that_prints_too_little_is_refused() -> None:
    silent = CommandMasterKeys((sys.executable, "-c", "print('YQ==')"))

    with pytest.raises(NoMasterKey, match="1 lines for 2"):
        await silent.decrypt("a", [b"x", b"y"])


async def test_keys_of_an_older_database_are_encrypted_at_the_first_start(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One owner is already erased; the start is interrupted and repeated."""
    monkeypatch.setattr(wrapped_keys, "KEYS_PER_CHUNK", 2)
    migrate_to(empty_database_url, "0013")
    living = {f"owner-{number}": (uuid4(), os.urandom(32)) for number in range(5)}
    for owner, (id, key) in living.items():
        execute(
            empty_database_url,
            "INSERT INTO audit.owner_keys (id, owner, key) VALUES (%s, %s, %s)",
            id,
            owner,
            key,
        )
    erased = "INSERT INTO audit.owner_keys (id, owner, destroyed_at) VALUES (%s, 'gone', now())"
    execute(empty_database_url, erased, uuid4())
    migrate(empty_database_url)
    masters: Any = in_files(tmp_path)

    async def start(before: int | None) -> None:
        fragile = Fragile(before)
        async with connected(empty_database_url) as connection:
            await ensure_master_key(
                fragile.wrap(connection, "execute"), fragile.wrap(masters, "encrypt")
            )

    for kill in (0, 2, 4, 5, 6):
        with suppress(Crash):
            await start(kill)
    await start(None)

    for id, wrapped, master in rows(
        empty_database_url,
        "SELECT id, wrapped, master FROM audit.owner_keys WHERE destroyed_at IS NULL",
    ):
        (content,) = await masters.decrypt(master, [wrapped])
        assert (UUID(bytes=content[:16]), content[16:]) in living.values()
        assert content[:16] == id.bytes
    left = "SELECT count(*) FROM audit.owner_keys WHERE unwrapped IS NOT NULL OR wrapped IS NULL"
    assert rows(empty_database_url, left) == [(1,)]


BACK_UP = (
    "CREATE TABLE backup_masters AS SELECT * FROM audit.master_keys",
    "CREATE TABLE backup_keys AS SELECT * FROM audit.owner_keys",
)
RESTORE = (
    "DELETE FROM audit.owner_keys",
    "DELETE FROM audit.master_keys",
    "INSERT INTO audit.master_keys SELECT * FROM backup_masters",
    "INSERT INTO audit.owner_keys SELECT * FROM backup_keys",
)


@pytest.mark.parametrize("kept", [in_files, by_command])
async def test_a_backup_from_before_erasures_is_readable_but_for_who_was_erased(
    database_url: str, tmp_path: Path, kept: Callable[[Path], MasterKeys]
) -> None:
    """Two owners are erased after it was made; one of those who stay came before, one after."""

    async def erase(masters: MasterKeys, copies: OwnerKeyCopies, owner: str) -> None:
        execute(database_url, DESTROY, owner)
        async with connected(database_url) as connection:
            await destroy_masters_of(connection, masters, owner, copies)

    masters, copies = kept(tmp_path), OwnerKeyCopies(tmp_path / "master-keys")
    await recorded(database_url, masters, "acme", "globex", "gone", "gone too")
    for statement in BACK_UP:
        execute(database_url, statement)
    await erase(masters, copies, "gone")
    await recorded(database_url, masters, "later")
    await erase(masters, copies, "gone too")
    for statement in RESTORE:
        execute(database_url, statement)
    execute(
        database_url,
        "DELETE FROM stored_events WHERE position('later' IN encode(state, 'escape')) > 0",
    )

    with pytest.raises(NoMasterKey):
        async with opened(database_url, masters):
            pass  # a machine without the copy
    async with connected(database_url) as connection:
        await ensure_master_key(connection, masters, copies)

    assert await paths(database_url, masters) == {"", "secret of acme", "secret of globex"}
    await recorded(database_url, masters, "gone")
    assert "secret of gone" in await paths(database_url, masters)


def test_one_copy_is_kept_and_it_is_its_owners_alone(tmp_path: Path) -> None:
    copies = OwnerKeyCopies(tmp_path / "master-keys")
    for number in range(3):
        copies.write(OwnerKeyCopy(f"new-{number}", b"proof", ["old"], [(uuid4(), b"key")]))

    (file,) = (tmp_path / "master-keys").iterdir()
    assert file.name == "new-2.owners"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = copies.replacing("old")
    assert found is not None
    assert found.master == "new-2"
    assert copies.replacing("unknown") is None
