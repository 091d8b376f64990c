"""A blob store and a database carry one mark: a folder that is not theirs is told at the start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.blobs.shared import (
    MARK,
    BlobStoreMismatch,
    check_store_identity,
    identity_matches,
)
from infrastructure.postgres.connection import connect


@contextmanager
def store(folder: Path) -> Iterator[LocalBlobStore]:
    opened = LocalBlobStore(folder)
    try:
        yield opened
    finally:
        opened.close()


async def require(url: str, blobs: LocalBlobStore) -> None:
    async with await connect(url, name="test") as connection:
        await check_store_identity(connection, blobs, "/somewhere")


async def same(url: str, blobs: LocalBlobStore) -> bool | None:
    async with await connect(url, name="test") as connection:
        return await identity_matches(connection, blobs)


async def test_the_first_process_marks_both_and_the_others_find_the_mark(
    database_url: str, tmp_path: Path
) -> None:
    with store(tmp_path) as blobs:
        assert await same(database_url, blobs) is None

        await asyncio.gather(*(require(database_url, blobs) for _ in range(4)))

        assert await same(database_url, blobs) is True
        await require(database_url, blobs)


async def test_a_folder_that_is_not_mounted_is_refused_and_left_as_it_is(
    database_url: str, tmp_path: Path
) -> None:
    with store(tmp_path / "one") as blobs, store(tmp_path / "empty") as empty:
        await require(database_url, blobs)

        with pytest.raises(
            BlobStoreMismatch, match="not in /somewhere, which holds none of them"
        ) as told:
            await require(database_url, empty)

        assert "UPTRAIL_BLOBS" in told.value.hint
        assert await same(database_url, empty) is False
        assert list((tmp_path / "empty").rglob(f"*{MARK}*")) == []


async def test_the_folder_of_another_database_is_refused(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    from infrastructure.postgres.schema import migrate

    migrate(empty_database_url)

    with store(tmp_path / "ours") as ours, store(tmp_path / "theirs") as theirs:
        await require(database_url, ours)
        await require(empty_database_url, theirs)

        with pytest.raises(BlobStoreMismatch, match="holds those of another database"):
            await require(database_url, theirs)


async def test_a_new_database_takes_the_mark_of_a_folder_that_has_one(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    from infrastructure.postgres.schema import migrate

    migrate(empty_database_url)

    with store(tmp_path) as blobs:
        await require(database_url, blobs)
        await require(empty_database_url, blobs)

        assert await same(database_url, blobs) is True
        assert await same(empty_database_url, blobs) is True
