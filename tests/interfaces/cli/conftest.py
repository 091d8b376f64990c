"""Run command lines as the installed command does, and capture their output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import msgspec
import pytest

from infrastructure.erasure import eraser, keyring
from interfaces.cli.main import run
from tests.interfaces.conftest import LiveServer
from tests.late_projector import delay_projector


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


Command: TypeAlias = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _late_projector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are late, as on a busy server: a command that reads must wait for what was recorded."""
    delay_projector(monkeypatch)


@pytest.fixture
def command(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Runs one command line in this process."""

    def call(*tokens: object) -> Outcome:
        code = run([str(token) for token in tokens])
        captured = capfdbinary.readouterr()
        return Outcome(code, captured.out.decode(), captured.err.decode())

    return call


@pytest.fixture
def uptrail(command: Command, live_server: LiveServer) -> Command:
    """Runs one command line against a running server, which it finds by its data directory."""

    def call(*tokens: object) -> Outcome:
        return command(*tokens, "--data-dir", live_server.data_dir)

    return call


@pytest.fixture
def quick_erasure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time until the only process is notified of an erasure."""
    monkeypatch.setattr(eraser, "SETTLE_SECONDS", 0.0)
    for module in (eraser, keyring):
        monkeypatch.setattr(module, "KEY_CACHE_SECONDS", 0.3)
