"""A parent supervises processes that never start, die or hang."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from infrastructure.settings import Settings
from infrastructure.tasks import cancel_and_wait
from interfaces.bootstrap import processes as module
from interfaces.bootstrap.container import ALL_ROLES, Role
from interfaces.bootstrap.processes import ChildConfig, ChildExited, ChildProcess, parse_config
from interfaces.bootstrap.tasks import StartupFailed


def member_running(script: str, folder: Path, patch: pytest.MonkeyPatch) -> ChildProcess:
    """A member whose process runs this script instead of a server."""
    patch.setattr(module, "COMMAND", (sys.executable, "-c", script))
    return ChildProcess(
        ChildConfig("work", Settings(data_dir=folder), (Role.WORKER,)), folder, None
    )


async def test_one_that_ends_before_it_is_up_is_hopeless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = member_running("raise SystemExit(3)", tmp_path, monkeypatch)

    with pytest.raises(StartupFailed, match=r"work did not come up: process \d+ ended with exit"):
        await member.run()


async def test_one_that_was_up_and_ends_has_died_and_may_live_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = member_running("print('up', flush=True)", tmp_path, monkeypatch)

    for _ in range(2):
        with pytest.raises(ChildExited, match="ended with exit code 0"):
            await member.run()
        assert member.up.is_set()


async def test_one_that_gives_no_sign_of_life_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_TIMEOUT", 0.05)

    member = member_running("print('up', flush=True); input(); input()", tmp_path, monkeypatch)

    with pytest.raises(ChildExited, match="ended with signal 9"):
        await member.run()


async def test_a_process_with_heartbeats_runs_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_TIMEOUT", 5.0)
    ended = tmp_path / "ended"
    script = f"""
import signal, sys, time, pathlib
def stop(*_):
    pathlib.Path({str(ended)!r}).touch()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
while True:
    print("alive", flush=True)
    time.sleep(0.05)
"""

    member = member_running(script, tmp_path, monkeypatch)

    living = asyncio.create_task(member.run())
    await member.up.wait()

    await cancel_and_wait(living)

    assert living.cancelled()
    assert ended.exists()


def test_an_order_arrives_as_it_was_given(tmp_path: Path) -> None:
    order = ChildConfig("api-1", Settings(data_dir=tmp_path, processes=3), ALL_ROLES, (7, 8))

    assert parse_config(order.line()) == order
