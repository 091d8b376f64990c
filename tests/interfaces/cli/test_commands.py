"""Commands on a running server and without one."""

from __future__ import annotations

import asyncio
import platform
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from application.errors import Unavailable
from application.views import Activity, BatchView
from domain.file import FileDeclaration
from interfaces.cli import main
from interfaces.cli.client import Client, FeedFrame
from interfaces.cli.console import Exit, ServerAddress, format_time, state_label
from interfaces.cli.main import run
from interfaces.cli.progress import PlainReporter, wait_for_outcome
from interfaces.cli.transfer import UploadProgress
from tests.interfaces.cli.conftest import Command
from tests.interfaces.conftest import LiveServer
from tests.support import eventually
from tests.support import run as run_story


def test_a_batch_is_started_sealed_listed_and_watched_to_its_end(uptrail: Command) -> None:
    id = uptrail("batch", "start", "--label", "empty").out.strip()

    assert uptrail("batch", "seal", id).code == 0
    watched = uptrail("batch", "watch", id)

    assert watched.code == 0
    assert "succeeded" in watched.out
    (row,) = uptrail("batch", "list", "--state", "completed", "--json").json
    assert (row["id"], row["label"]) == (id, "empty")


def test_a_cancelled_batch_ends_watch_with_4(uptrail: Command) -> None:
    id = uptrail("batch", "start", "--json").json["id"]
    uptrail("batch", "cancel", id)

    assert uptrail("batch", "watch", id).code == 4


def test_a_report_lists_failures_and_a_retry_processes_them_again(
    uptrail: Command, tmp_path: Path
) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.png").write_text("not a picture at all")
    sent = uptrail("upload", tmp_path / "good.txt", tmp_path / "bad.png", "--wait", "--json")
    id = sent.json["id"]

    table = uptrail("batch", "report", id, "--only", "failed").out.splitlines()
    whole = uptrail("batch", "report", id, "--json").json
    uptrail("batch", "report", id, "--format", "ndjson", "--to", tmp_path / "report.ndjson")

    assert len(table) == 2
    assert "bad.png" in table[1]
    assert [reason["uploads"] for reason in whole["reasons"]] == [1]
    assert len((tmp_path / "report.ndjson").read_bytes().splitlines()) == 2
    assert uptrail("batch", "retry", id).code == 0
    assert uptrail("batch", "watch", id).code == 3
    (failed,) = uptrail("batch", "show", id, "--state", "failed", "--json").json["uploads"]
    assert failed["attempt"] == 2
    refused = uptrail("upload", "release", failed["id"], "--reason", "it is fine")
    assert (refused.code, "the upload is failed" in refused.err) == (1, True)


def test_a_batch_is_given_priority(uptrail: Command) -> None:
    id = uptrail("batch", "start", "--json").json["id"]

    assert uptrail("batch", "prioritize", id, 5).code == 0
    uptrail("batch", "seal", id)
    uptrail("batch", "watch", id)

    assert uptrail("batch", "show", id, "--json").json["batch"]["priority"] == 5
    assert uptrail("batch", "retry", id).code == 1


def test_a_batch_is_renamed(uptrail: Command) -> None:
    id = uptrail("batch", "start", "--label", "summer", "--json").json["id"]

    renamed = uptrail("batch", "rename", id, "winter")

    assert (renamed.code, renamed.out) == (0, f"batch {id} has the label winter now\n")
    listed = uptrail("batch", "list", "--label", "winter", "--json").json
    assert [batch["id"] for batch in listed] == [id]
    refused = uptrail("batch", "rename", id, "x" * 201)
    assert (refused.code, "at most 200 printable characters" in refused.err) == (1, True)


def test_history_shows_actor_and_action(uptrail: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    batch = uptrail("upload", tmp_path / "a.txt", "--wait", "--json").json["id"]
    (upload,) = uptrail("batch", "show", batch, "--json").json["uploads"]

    events_shown = uptrail("history", "show", upload["id"])

    kinds = [line.split()[3] for line in events_shown.out.splitlines()[1:]]
    assert kinds[0] == "upload.registered"
    assert kinds[-1] == "upload.completed"
    lines = uptrail("history", "export", "--plain").out.splitlines()
    kinds = ('"type":"batch.', '"type":"upload.')  # not those of keys and sign-ins
    of_batches = [line for line in lines if any(kind in line for kind in kinds)]
    shown = uptrail("history", "show", batch, "--json", "--limit", 1000).json
    assert len(of_batches) == len(shown)


def test_verify_agrees_and_the_read_model_can_be_rebuilt(
    uptrail: Command, live_server: LiveServer, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    uptrail("upload", tmp_path / "a.txt", "--wait")
    store = ("--database-url", live_server.settings.database_url)

    assert uptrail("verify", *store).code == 0
    assert uptrail("projection", "rebuild", *store).code == 0
    (listed,) = uptrail("projection", "list", *store, "--json").json
    assert listed["behind"] == 0
    assert len(uptrail("batch", "list", "--json").json) == 1


def test_a_key_is_made_used_and_revoked(
    uptrail: Command, command: Command, live_server: LiveServer
) -> None:
    made = uptrail("key", "create", "--scope", "viewer", "--json").json
    there = ("--url", live_server.url, "--key", made["text"])

    assert command("batch", "list", *there).code == 0
    refused = command("batch", "start", *there)
    assert (refused.code, "scope" in refused.err) == (1, True)
    uptrail("key", "revoke", made["key"]["id"])
    assert command("batch", "list", *there).code == 1
    states = {row["id"]: row["revoked_at"] for row in uptrail("key", "list", "--json").json}
    assert states[made["key"]["id"]] is not None


def test_the_admin_key_is_not_sent_to_a_url_from_the_command_line(uptrail: Command) -> None:
    refused = uptrail("batch", "list", "--url", "http://127.0.0.1:9")

    assert refused.code == 2
    assert "needs a key" in refused.err


def test_doctor_finds_no_fault_in_a_running_server(
    uptrail: Command, live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPTRAIL_DATABASE_URL", live_server.settings.database_url or "")

    found = uptrail("doctor", "--json")

    levels = {finding["check"]: finding["level"] for finding in found.json}
    assert found.code == 0
    assert levels["server"] == levels["database"] == levels["jobs"] == "ok"


def test_doctor_tries_the_sandbox_for_decoders(command: Command, tmp_path: Path) -> None:
    found = command("doctor", "--json", "--data-dir", tmp_path / "data")

    (decoders,) = (finding for finding in found.json if finding["check"] == "decoders")
    filtered = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    assert decoders["level"] == ("ok" if filtered else "warn")
    assert "seccomp" in decoders["told"]


def test_doctor_without_a_server_names_the_remedy_and_creates_nothing(
    command: Command, tmp_path: Path
) -> None:
    found = command("doctor", "--data-dir", tmp_path / "data")

    assert found.code == 0
    assert "uptrail serve" in found.out
    assert not (tmp_path / "data" / "postgres").exists()


REFUSED = ("batch", "list", "--url", "http://127.0.0.1:9", "--key", "up_a_b")


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        (["btach"], 2),
        (["batch", "list", "--limit", "0"], 2),
        (["batch", "list", "--nonsense"], 2),
        (["serve", "--port", "99999"], 2),
        (["serve", "--role", "king"], 2),
        (["upload", "--jobs", "many"], 2),
        ([*REFUSED, "--connect-timeout", "0.1"], 5),
        ([*REFUSED, "--connect-timeout", "0"], 2),
        (["batch", "list", "--url", "127.0.0.1:9", "--key", "up_a_b"], 2),
        (["batch", "list"], 5),
        (["verify", "--database-url", "postgresql://nobody@127.0.0.1:9/none"], 5),
    ],
)
def test_an_error_is_one_sentence_with_what_to_do(
    command: Command, tmp_path: Path, tokens: list[str], code: int
) -> None:
    failed = command(*tokens, *([] if tokens[0] == "btach" else ["--data-dir", tmp_path]))

    assert failed.code == code
    assert failed.err.startswith("uptrail: ")
    assert "Traceback" not in failed.err
    assert len(failed.err.splitlines()) <= 4


def test_a_problem_is_printed_in_its_own_words(uptrail: Command) -> None:
    failed = uptrail("batch", "start", "--pipeline", "nonsense")

    assert failed.code == 1
    assert "is not known here; known: default" in failed.err


def test_an_unknown_id_is_not_found(uptrail: Command) -> None:
    for tokens in (("batch", "show"), ("upload", "show"), ("history", "show"), ("batch", "watch")):
        missing = uptrail(*tokens, "00000000-0000-0000-0000-000000000000")
        assert (missing.code, "uptrail batch list" in missing.err) == (1, True)


def test_config_show_names_the_source_of_each_value(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uptrail.toml").write_text('port = 9000\ndatabase_url = "postgresql://u:pw@h/d"\n')
    monkeypatch.setenv("UPTRAIL_LOG_LEVEL", "debug")

    shown = command("config", "show", "--data-dir", tmp_path, "--json").json

    assert shown["port"] == {"value": 9000, "source": str(tmp_path / "uptrail.toml")}
    assert shown["log_level"] == {"value": "debug", "source": "UPTRAIL_LOG_LEVEL"}
    assert shown["data_dir"]["source"] == "command line"
    assert shown["host"] == {"value": "127.0.0.1", "source": "default"}
    assert shown["database_url"]["value"] == "postgresql://u:***@h/d"


def test_help_costs_no_import_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    code = """
import sys
from interfaces.cli.main import run
run(["--help"])
heavy = {"sqlalchemy", "PIL", "alembic", "aiohttp", "procrastinate", "psycopg"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["uptrail", version("uptrail")]


def test_a_batch_is_listed_shown_and_watched_by_what_it_is_doing(
    uptrail: Command, live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("application.views.STALLED_AFTER", timedelta(seconds=4))
    id = uptrail("batch", "start", "--label", "slow").out.strip()
    assert uptrail("batch", "show", id).out.startswith("slow: open, waiting for files, 0 %")

    async def send_half_and_watch() -> list[str]:
        async with Client(ServerAddress(live_server.url, live_server.key)) as client:
            (file,) = await client.add_files(UUID(id), [FileDeclaration(path="a.bin", size=10)])
            headers = {
                "Tus-Resumable": "1.0.0",
                "Upload-Offset": "0",
                "Content-Type": "application/offset+octet-stream",
            }
            path = f"{live_server.url}/v1/uploads/{file.upload}"
            async with client.session.patch(path, data=b"12345", headers=headers) as answer:
                assert answer.status == 204
            seen: list[str] = []
            screen = Seen(seen)
            watching = asyncio.create_task(wait_for_outcome(client, UUID(id), screen))
            await eventually(lambda: "stalled" in seen)
            await client.command(f"/v1/batches/{id}/cancel")
            await watching
            return seen

    assert "stalled" in run_story(send_half_and_watch())
    listed = uptrail("batch", "list").out
    assert "cancelled" in listed
    assert "100 %" not in listed


class Seen(PlainReporter):
    """A screen that keeps what the batch was doing."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def note(self, line: str) -> None:
        pass

    def sending(self, tally: UploadProgress) -> None:
        pass

    def frame(self, frame: FeedFrame) -> None:
        self._seen += [batch.activity or batch.state for batch in frame.batches]


def test_a_stalled_batch_shows_since_when() -> None:
    since = datetime(2026, 1, 1, 12, tzinfo=UTC)
    batch = BatchView(
        id=uuid4(),
        owner="acme",
        started_at=since,
        started_by="key:a",
        updated_at=since,
        version=1,
        position=1,
        active_at=since,
        activity=Activity.STALLED,
        activity_since=since,
    )

    assert state_label(batch) == f"open, stalled since {format_time(since)}"


def test_every_error_that_is_known_by_its_name_exists() -> None:
    root = Path(__file__).parents[3]
    packages = ("domain", "application", "infrastructure", "interfaces")
    sources = [file.read_text() for name in packages for file in (root / name).rglob("*.py")]
    classes = {name for source in sources for name in re.findall(r"^class (\w+)", source, re.M)}

    names = {name for name, *_ in main._known_errors()}

    assert {name for name in names if not hasattr(psycopg.errors, name)} <= classes


def test_a_database_that_goes_away_during_the_start_is_unreachable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def start() -> None:
        raise ExceptionGroup("parts", [Unavailable("the log cannot be read")])

    assert main.run_reporting_errors(start) == Exit.UNREACHABLE
    assert "uptrail: the log cannot be read" in capsys.readouterr().err
