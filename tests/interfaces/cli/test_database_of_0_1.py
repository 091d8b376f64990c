"""A database written by version 0.1.0, and its files, open with this version unchanged.

`database_0_1/dump.sql.gz` is a plain `pg_dump --inserts` of that version's embedded database,
`data.tar.gz` its data directory without PostgreSQL. Three owners (acme, bolt, gone) each sent a
batch with one broken picture, retried it, and left a second batch open after a pause and a resume,
with `later.txt` declared and not sent.
The log was sealed, the sealing key rotated, `gone` erased, a key revoked, and bolt sent once more.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.request import Request, urlopen

import psycopg
import pytest
from psycopg.rows import dict_row

from infrastructure.settings import Settings
from tests.interfaces.cli.conftest import Command, Outcome
from tests.interfaces.conftest import LiveServer, serving
from tests.support import eventually, run

FILES = Path(__file__).parent / "database_0_1"
# A fault of 0.1.0 left the state of another owner's batch in some rows.
FOREIGN_VALUES = """UPDATE read_model.batches SET paused = true, state = 'sealed',
    sealed_at = '2026-01-01T00:00:00Z' WHERE label LIKE '% open'"""


def restore(database_url: str) -> list[dict[str, Any]]:
    """Load the dump and return its rows of batches, before some get foreign values."""
    lines = gzip.decompress((FILES / "dump.sql.gz").read_bytes()).decode().splitlines()
    # psql's own commands, and a setting that only PostgreSQL 17 and newer know
    statements = [x for x in lines if not x.startswith(("\\", "SET transaction_timeout"))]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(cast("Any", "\n".join(statements)))
    with psycopg.connect(database_url, row_factory=dict_row) as connection:
        rows = connection.execute("SELECT * FROM read_model.batches ORDER BY id").fetchall()
        connection.execute(FOREIGN_VALUES)
    return rows


def foreign_values(live_server: LiveServer) -> bool:
    assert live_server.settings.database_url is not None
    with psycopg.connect(live_server.settings.database_url) as connection:
        found = connection.execute(
            "SELECT FROM read_model.batches WHERE paused AND label LIKE '% open'"
        )
        return found.fetchone() is not None


pytestmark = pytest.mark.usefixtures("quick_erasure")


@pytest.fixture
def old(empty_database_url: str, tmp_path: Path) -> tuple[Settings, list[dict[str, Any]]]:
    data_dir = tmp_path / "data"
    with tarfile.open(FILES / "data.tar.gz") as archive:
        archive.extractall(data_dir, filter="data")
    batches = restore(empty_database_url)
    settings = Settings(
        data_dir=data_dir,
        database_url=empty_database_url,
        port=0,
        allow_private_addresses=True,
    )
    return settings, batches


@pytest.fixture
def upgraded(old: tuple[Settings, list[dict[str, Any]]]) -> Iterator[LiveServer]:
    with serving(old[0]) as live:
        yield live


def verify(uptrail: Command, live_server: LiveServer) -> Outcome:
    assert live_server.settings.database_url is not None
    return uptrail("verify", "--database-url", live_server.settings.database_url)


def test_batches_read_as_the_log_has_them_and_foreign_values_are_gone(
    command: Command, old: tuple[Settings, list[dict[str, Any]]], upgraded: LiveServer
) -> None:
    run(eventually(lambda: not foreign_values(upgraded)))  # the read model is rebuilt meanwhile
    before = {str(row["id"]): row for row in old[1]}
    listed = command("batch", "list", "--json", "--data-dir", upgraded.data_dir)
    shown = {row["id"]: row for row in listed.json}

    assert set(shown) == set(before)
    for id, row in before.items():
        for column in ("state", "owner", "label", "paused", "outcome"):
            assert shown[id].get(column) == row[column], (id, column)


def test_verify_passes_also_after_new_work_and_a_new_erasure(
    command: Command, upgraded: LiveServer, tmp_path: Path
) -> None:
    def uptrail(*tokens: object) -> Outcome:
        return command(*tokens, "--data-dir", upgraded.data_dir)

    run(eventually(lambda: not foreign_values(upgraded)))
    first = verify(uptrail, upgraded)
    assert first.code == 0, first.out + first.err

    (tmp_path / "new.txt").write_text("new")
    sent = uptrail("upload", tmp_path / "new.txt", "--wait")
    assert sent.code == 0, sent.out + sent.err
    assert uptrail("seal", "now").code == 0
    erased = uptrail("erase", "acme", "--yes", "--wait")
    assert erased.code == 0, erased.out + erased.err
    assert uptrail("seal", "now").code == 0

    second = verify(uptrail, upgraded)
    assert second.code == 0, second.out + second.err


def test_an_owner_erased_by_0_1_stays_erased(upgraded: LiveServer) -> None:
    assert upgraded.settings.database_url is not None
    with psycopg.connect(upgraded.settings.database_url) as connection:
        for query in (
            "SELECT convert_from(state, 'UTF8') FROM stored_events",
            "SELECT path FROM read_model.uploads",
            "SELECT label FROM read_model.batches",
        ):
            for (value,) in connection.execute(cast("Any", query)):
                assert "gone-file" not in (value or "")
                assert "gone scans" not in (value or "")


def test_keys_files_and_ids_made_by_0_1_stay_valid(
    command: Command, upgraded: LiveServer, tmp_path: Path
) -> None:
    def uptrail(*tokens: object) -> Outcome:
        return command(*tokens, "--data-dir", upgraded.data_dir)

    listed = uptrail("batch", "list", "--json").json
    scans = next(row for row in listed if row["label"] == "bolt scans")
    shown = uptrail("batch", "show", scans["id"], "--json").json
    upload = next(u for u in shown["uploads"] if u["path"].endswith("bolt-file1.txt"))
    assert upload["state"] == "completed"

    headers = {"Authorization": f"Bearer {upgraded.key}", "Content-Type": "application/json"}
    content = Request(f"{upgraded.url}/v1/uploads/{upload['id']}/content", headers=headers)
    with urlopen(content) as response:
        assert response.read() == b"bolt 1 text\n"

    opened = next(row for row in listed if row["label"] == "acme open")
    (registered,) = uptrail("batch", "show", opened["id"], "--json").json["uploads"]
    again = Request(
        f"{upgraded.url}/v1/batches/{opened['id']}/uploads",
        json.dumps([{"path": "later.txt", "size": 5}]).encode(),
        headers,
    )
    with urlopen(again) as response:
        (answer,) = json.load(response)["files"]
    assert answer["upload"] == registered["id"]

    keys = uptrail("key", "list", "--json").json
    assert {key["label"] for key in keys} >= {"acme backend", "bolt backend"}
