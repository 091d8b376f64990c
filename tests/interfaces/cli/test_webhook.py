"""`uptrail webhook` against a running server, with the receiver of the manual."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from domain.webhook.events import DELIVERED_TOPICS
from infrastructure.settings import Settings
from tests.interfaces.cli.conftest import Command, Outcome
from tests.interfaces.conftest import LiveServer, serving
from tests.support import free_port

EXAMPLE = Path(__file__).parents[3] / "docs/examples/webhook_receiver.py"
PATIENCE = 120.0  # seconds


@pytest.fixture
def uptrail(command: Command, settings: Settings) -> Iterator[Command]:
    """Commands against a server that may tell receivers on this machine."""
    with serving(replace(settings, allow_private_addresses=True)) as live:

        def call(*tokens: object) -> Outcome:
            return command(*tokens, "--data-dir", live.data_dir)

        yield call


@pytest.fixture
def port() -> int:
    return free_port()


@contextmanager
def receiver(port: int, secret: str, out: Path) -> Iterator[None]:
    """The example of the manual, once it listens."""
    with (
        out.open("w") as file,
        subprocess.Popen(
            [sys.executable, str(EXAMPLE), str(port)],
            env={**os.environ, "SECRET": secret},
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as running,
    ):
        try:
            _wait_for(lambda: _listens(port))
            yield
        finally:
            running.terminate()
            running.wait(PATIENCE)


def test_a_webhook_is_added_and_tested_and_its_receiver_verifies_the_signature(
    uptrail: Command, port: int, tmp_path: Path
) -> None:
    url, heard = f"http://127.0.0.1:{port}/hook", tmp_path / "heard.txt"
    added = uptrail("webhook", "add", url, "--event", "batch.completed", "--label", "photos")
    id, secret = added.out.split()
    assert "shown this once" in added.err

    refused = uptrail("webhook", "test", id)
    assert (refused.code, "cannot be reached" in refused.out) == (1, True)
    with receiver(port, secret, heard):
        assert uptrail("webhook", "test", id, "--json").json["state"] == "delivered"
        (tmp_path / "a.txt").write_text("a")
        sent = uptrail("upload", tmp_path / "a.txt", "--label", "photos", "--wait", "--json")
        _wait_for(lambda: "batch.completed" in heard.read_text())

    received = heard.read_text()
    assert "webhook.test_requested" in received
    assert f'"id": "{sent.json["id"]}"' in received
    (newest, *_) = uptrail("webhook", "deliveries", id, "--json").json
    assert (newest["type"], newest["batch"]) == ("batch.completed", sent.json["id"])
    table = uptrail("webhook", "deliveries", id, "--state", "failed").out
    assert "webhook.test_requested" in table
    with receiver(port, "whsec_" + "A" * 40, heard):
        assert "401" in uptrail("webhook", "test", id).out
    assert uptrail("webhook", "redeliver", id).code == 2
    assert uptrail("webhook", "redeliver", id, newest["position"]).code == 0
    since = uptrail("webhook", "redeliver", id, "--failed-since", "2026-01-01", "--json")
    assert since.json["deliveries"] == 2


def test_a_webhook_is_disabled_rotated_enabled_listed_and_removed(uptrail: Command) -> None:
    added = uptrail("webhook", "add", "https://example.com/", "--on-request", "--json").json
    id = added["webhook"]["id"]

    disabled = uptrail("webhook", "disable", id, "--reason", "moving house")
    assert "disabled: moving house" in disabled.out
    assert "disabled: moving house" in uptrail("webhook", "list").out
    rotated = uptrail("webhook", "rotate", id).out.split()
    assert rotated[0] == id
    assert rotated[1] not in (added["secret"], uptrail("webhook", "show", id).out)
    assert "earlier secrets sign until" in uptrail("webhook", "show", id).out
    assert "enabled; 0 pending" in uptrail("webhook", "enable", id).out
    assert uptrail("webhook", "remove", id).code == 0
    assert uptrail("webhook", "list", "--json").json == []
    gone = uptrail("webhook", "show", id)
    assert (gone.code, "does not exist" in gone.err) == (1, True)
    wrong = uptrail("webhook", "add", "https://example.com/", "--event", "batch.progressed")
    assert (wrong.code, "must be one of batch.started" in wrong.err) == (1, True)


def test_the_address_of_a_webhook_is_not_that_of_the_server(
    command: Command, live_server: LiveServer
) -> None:
    place = ("--data-dir", live_server.data_dir, "--url", live_server.url)
    added = command("webhook", "add", "https://example.com/", "--json", *place)
    history = command("history", "show", added.json["webhook"]["id"], *place)

    assert added.json["webhook"]["url"] == "https://example.com/"
    assert "webhook.added" in history.out


def test_the_manual_names_every_event_and_shows_the_receiver_that_is_tested() -> None:
    manual = (EXAMPLE.parents[1] / "webhooks.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", manual, re.DOTALL)

    assert shown in EXAMPLE.read_text()
    assert set(re.findall(r"`((?:batch|upload)\.[a-z_]+)`", manual)) == set(DELIVERED_TOPICS)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
