"""After an erasure the files of the embedded database hold no data of the owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from infrastructure.erasure.master_keys import FileMasterKeys
from infrastructure.postgres.embedded.server import EmbeddedPostgres
from infrastructure.settings import Settings
from interfaces.bootstrap.container import open_database
from tests.interfaces.cli.conftest import Command
from tests.interfaces.conftest import serving
from tests.support import run

OWNER = "tenant-7"
SECRET = "tagebuch-von-alice"
FILES = 40  # so many that samples of their paths are in the statistics

pytestmark = pytest.mark.usefixtures("quick_erasure")


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Settings]:
    data_dir = tmp_path / "data"
    yield Settings(data_dir=data_dir, port=0)
    EmbeddedPostgres(data_dir).discard()


def test_no_file_of_the_database_holds_what_was_erased(
    embedded: Settings, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / SECRET
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{SECRET}-{number}.txt").write_text("dear diary")
    with serving(embedded) as live:
        place = ("--data-dir", live.data_dir)
        made = command("key", "create", "--owner", OWNER, "--scope", "operator", "--json", *place)
        theirs = ("--url", live.url, "--key", made.json["text"])
        sent = command("upload", folder, "--label", SECRET, "--wait", "--json", *theirs)
        assert sent.code == 0, sent
        open_batch = command("batch", "start", "--label", f"{SECRET} 2", "--json", *theirs)
        command("batch", "cancel", open_batch.json["id"], "--reason", SECRET, *theirs)
        asked = run(_analyzed(embedded))
        secrets = [SECRET.encode(), *asked]
        assert files_with(embedded, secrets[:1]) != set()
        erased = command("erase", OWNER, "--yes", "--wait", "--json", *place)
        assert erased.json["uploads"] == FILES, erased
        assert files_with(embedded, secrets) == set()
        assert command("verify", *place).code == 0
        assert command("batch", "show", sent.json["id"], *place).code == 0
    assert files_with(embedded, secrets) == set()  # nor once the server has ended


async def _analyzed(settings: Settings) -> list[bytes]:
    """Write everything to disk, including statistics; return the owner's key in the clear."""
    async with open_database(settings) as database:
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute("ANALYZE")
            connection.execute("CHECKPOINT")
            rows = connection.execute(
                "SELECT wrapped, master FROM audit.owner_keys WHERE owner = %s", (OWNER,)
            ).fetchall()
    masters = FileMasterKeys(settings.master_key_folder)
    return [(await masters.decrypt(master, [wrapped]))[0][16:] for wrapped, master in rows]


def files_with(settings: Settings, secrets: list[bytes]) -> set[str]:
    """Return files of the cluster and the master keys that contain one of the values."""
    found = set()
    cluster = Path(os.path.realpath(settings.data_dir / "postgres"))
    for place in (cluster, settings.master_key_folder):
        for path in place.rglob("*"):
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:  # removed meanwhile
                continue
            if any(secret in content for secret in secrets):
                found.add(str(path.relative_to(place)))
    return found
