"""The commands of an auditor: keep seals, check an export alone, check the log in place."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.interfaces.cli.conftest import Command
from tests.interfaces.conftest import LiveServer


@pytest.fixture
def store(live_server: LiveServer) -> tuple[str, str]:
    assert live_server.settings.database_url is not None
    return "--database-url", live_server.settings.database_url


def test_an_export_is_checked_by_itself_and_an_altered_one_is_found_out(
    uptrail: Command, command: Command, store: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    batch = uptrail("upload", tmp_path / "a.txt", "--wait", "--json").json["id"]
    assert "events sealed" in uptrail("seal", "now", *store).out
    key, file = tmp_path / "key.pem", tmp_path / "export.ndjson"
    key.write_text(uptrail("seal", "keys", "--pem").out)

    for of in ((), ("--batch", batch)):
        uptrail("history", "export", *of, "--to", file)
        checked = command("verify", "--export", file, "--public-key", key, "--json")
        assert checked.code == 0, checked.out
        assert checked.json["events"] > 5

    kept = tmp_path / "seals.ndjson"
    kept.write_text(uptrail("seal", "list", "--json").out)
    beside = ("verify", "--export", file, "--public-key", key, "--seals", kept)
    assert command(*beside).code == 0
    kept.write_text(kept.read_text().replace('"count":', '"count":1'))
    other = command(*beside)
    assert (other.code, "than the one that was kept outside" in other.out) == (1, True)

    file.write_text(file.read_text().replace("upload.completed", "upload.failed"))
    found = command("verify", "--export", file, "--public-key", key)
    assert (found.code, "altered: " in found.out) == (1, True)
    assert command("verify", "--export", file).code == 2


def test_verify_finds_what_was_done_to_the_log_and_to_its_seals(
    uptrail: Command, store: tuple[str, str], tmp_path: Path
) -> None:
    uptrail("batch", "start")
    uptrail("seal", "now", *store)
    uptrail("seal", "rotate", *store)
    kept = tmp_path / "seals.ndjson"
    kept.write_text(uptrail("seal", "list", "--json").out)
    assert uptrail("verify", *store, "--seals", kept).code == 0

    with psycopg.connect(store[1], autocommit=True) as connection:
        connection.execute("UPDATE stored_events SET topic = 'x' WHERE notification_id = 1")
        connection.execute("DELETE FROM audit.seals WHERE number > 1")
    found = uptrail("verify", *store, "--seals", kept)

    assert found.code == 1
    assert "position 1: altered: " in found.out
    assert "are missing at the end" in found.out


def test_verify_names_what_was_done_to_derived_tables(
    uptrail: Command, store: tuple[str, str], tmp_path: Path
) -> None:
    """An admin key is put in, a webhook's address changed, an erasure and a position removed."""
    uptrail("batch", "start")
    uptrail("webhook", "add", "https://hooks.example/")
    erasure = uptrail("erase", "nobody", "--yes", "--json").json["id"]
    sound = uptrail("verify", *store)
    assert (sound.code, "they follow from the log" in sound.out) == (0, True), sound.out

    with psycopg.connect(store[1], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO api_keys (id, secret_hash, owner, scope, label) VALUES"
            " ('0123456789abcdef', decode(repeat('ab', 32), 'hex'), 'default', 'admin', '')"
        )
        connection.execute(
            "UPDATE webhooks.endpoints SET webhook ="
            " jsonb_set(webhook, '{subscription,url}', '\"https://evil.example/\"')"
        )
        connection.execute("DELETE FROM audit.erasures")
        connection.execute("UPDATE orchestration.batches SET owner = 'globex'")
    found = uptrail("verify", *store)
    as_json = uptrail("verify", "--json", *store)

    assert found.code == as_json.code == 1
    for expected in (
        "api_keys 0123456789abcdef: key altered: no event in the log is of it",
        "webhook altered: differs from the log: subscription is",
        f"audit.erasures {erasure}: erasure altered: is missing",
        "orchestration altered: differs from the log: owner is globex, the log says default",
    ):
        assert expected in found.out
    kinds = {one["kind"] for one in as_json.json["derived"]["findings"]}
    assert kinds >= {"key_altered", "webhook_altered", "erasure_altered", "orchestration_altered"}


def test_a_machine_without_the_key_does_not_seal_with_another(
    uptrail: Command,
    command: Command,
    live_server: LiveServer,
    store: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uptrail("batch", "start")
    uptrail("seal", "now", *store)
    monkeypatch.setenv("UPTRAIL_MASTER_KEYS", str(live_server.settings.master_key_folder))

    for what in ("now", "rotate"):
        refused = command("seal", what, *store, "--data-dir", tmp_path / "elsewhere")
        assert (refused.code, "the key that seals is not on this machine" in refused.err) == (
            1,
            True,
        )
