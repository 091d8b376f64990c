"""A decoder taken over by a hostile file can do nothing but decode."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from infrastructure.processors import sandbox
from infrastructure.processors.decoder_pool import (
    DECODERS,
    MAX_RESPONSE_BYTES,
    DecoderLimits,
    DecoderPool,
)
from tests.support import eventually

MIB = 1024 * 1024
PROBE = "infrastructure.processors.sandbox_probe:probe"
LIMITS = DecoderLimits(memory=512 * MIB, seconds=20)
HOSTILE = str(Path(__file__).with_name("hostile_decoders.py"))
SECCOMP = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")

DENIED_BY = {
    "landlock": {"read_file", "list_folder", "write_file"},
    "seccomp": {
        *("read_file", "list_folder", "write_file", "open_socket", "connect"),
        *("start_process", "execute", "signal_process", "become_root"),
    },
}
if sandbox.landlock_version() >= 4:
    DENIED_BY["landlock"].add("connect")
if sandbox.landlock_version() >= 6:
    DENIED_BY["landlock"].add("signal_process")

needs_landlock = pytest.mark.skipif(
    not sandbox.landlock_version(), reason="this kernel has no Landlock"
)
needs_seccomp = pytest.mark.skipif(not SECCOMP, reason="no seccomp filter for this platform")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


async def probe(*restrictions: str) -> dict[str, Any]:
    async with DecoderPool(most=1) as decoders:
        decoded = await decoders.run(PROBE, b"words", {}, LIMITS, restrictions=restrictions)
    assert set(decoded.answer) == {"applied", "uid", "gid", "content", "attempts"}, decoded.answer
    return decoded.answer


@needs_seccomp
async def test_a_decoder_in_the_whole_sandbox_can_do_nothing_but_read_its_file() -> None:
    found = await probe("landlock", "seccomp", "limits")

    assert found["content"] == "words"
    assert [name for name, refused in found["attempts"].items() if refused is None] == []


@pytest.mark.parametrize(
    "mechanism",
    [
        pytest.param("landlock", marks=needs_landlock),
        pytest.param("seccomp", marks=needs_seccomp),
    ],
)
async def test_each_mechanism_denies_by_itself(mechanism: str) -> None:
    found = await probe(mechanism)

    assert found["applied"][mechanism]
    for attempt in DENIED_BY[mechanism] | {"change_input"}:
        assert found["attempts"][attempt] is not None, attempt
    assert found["content"] == "words"


async def test_limits_alone_keep_a_decoder_from_starting_processes_where_it_is_not_root() -> None:
    found = await probe("limits")

    assert found["uid"] != 0
    assert found["attempts"]["start_process"] is not None


@needs_root
async def test_a_decoder_started_by_root_is_an_unprivileged_user_for_good() -> None:
    found = await probe()

    assert found["applied"]["user"]
    assert (found["uid"], found["gid"]) == (sandbox.UNPRIVILEGED,) * 2
    assert found["attempts"]["become_root"] == "PermissionError"
    assert found["attempts"]["signal_process"] is None  # its own server, which is as unprivileged


@needs_root
async def test_the_server_of_decoders_holds_no_privilege_either(tmp_path: Path) -> None:
    async with DecoderPool(most=1) as decoders:
        await decoders.run(PROBE, b"", {}, LIMITS)
        (server,) = decoders.free
        status = await asyncio.to_thread(
            Path(f"/proc/{server.process.pid}/status").read_text, encoding="ascii"
        )
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split() + fields["Gid"].split()) == {str(sandbox.UNPRIVILEGED)}
    assert fields["Groups"].split() == []
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


async def test_nothing_of_the_environment_reaches_a_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UPTRAIL_DATABASE_URL", "postgresql://secret")
    async with DecoderPool([HOSTILE], most=1) as decoders:
        decoded = await decoders.run(f"{HOSTILE}:surroundings", b"", {}, LIMITS)
    assert set(decoded.answer["environment"]) <= {"LC_CTYPE", "PATH"}  # Python sets the former
    assert decoded.answer["descriptors"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("function", "key", "message"),
    [
        ("spins", "limit", "more than 1 s of processor time"),
        ("hoards", "limit", "bytes of memory"),
        ("crashes", "failed", "killed by signal"),
        ("ends", "failed", "ended with status 7 and no answer"),
        ("babbles", "failed", "said more than"),
        ("forges", "failed", ""),
        ("nests", "failed", "makes no sense"),
        ("raises", "failed", "SystemExit"),
    ],
)
async def test_a_decoder_that_goes_wrong_is_reported_and_the_next_one_is_well(
    function: str, key: str, message: str
) -> None:
    limits = DecoderLimits(memory=400 * MIB, seconds=1)
    async with DecoderPool([HOSTILE], most=1) as decoders:
        decoded = await decoders.run(f"{HOSTILE}:{function}", b"", {}, limits)
        after = await decoders.run(f"{HOSTILE}:echo", b"x" * 5, {"a": 1}, limits)

    assert message in decoded.answer[key]
    assert len(decoded.answer[key]) < 2000
    assert (after.answer["order"]["a"], after.answer["read"]) == (1, 5)


async def test_a_decoder_returns_data_up_to_its_limit() -> None:
    limits = DecoderLimits(memory=400 * MIB, seconds=5, data=3 * MIB)
    async with DecoderPool([HOSTILE], most=1) as decoders:
        for size, arrives in ((3 * MIB, True), (3 * MIB + MAX_RESPONSE_BYTES + 1, False)):
            decoded = await decoders.run(f"{HOSTILE}:data", b"", {"size": size}, limits)
            assert (len(decoded.data) == size) is arrives
            assert ("failed" in decoded.answer) is not arrives


async def test_a_decoder_does_not_outlive_its_caller(tmp_path: Path) -> None:
    script = f"""
import asyncio
from infrastructure.processors.decoder_pool import DecoderLimits, DecoderPool
async def main():
    pool = DecoderPool([{HOSTILE!r}], most=1)
    work = asyncio.create_task(
        pool.run({HOSTILE + ":sleeps"!r}, b"", {{}}, DecoderLimits(memory=2**29, seconds=60))
    )
    while not pool.busy:
        await asyncio.sleep(0.01)
    (server,) = pool.busy
    print(server.process.pid, flush=True)
    await work
asyncio.run(main())
"""
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert asking.stdout is not None
    server = int(await asking.stdout.readline())
    asking.kill()
    await asking.wait()

    def ended() -> bool:
        try:
            os.killpg(server, 0)  # the server's session, its child included
        except ProcessLookupError:
            return True
        return False

    await eventually(ended)


async def test_only_functions_of_loaded_modules_are_called() -> None:
    async with DecoderPool(DECODERS, most=1) as decoders:
        with pytest.raises(ValueError, match="no decoder takes this order"):
            await decoders.run("os:system", b"", {}, LIMITS)
    assert decoders.free == []
