from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from application.pipeline import PermanentError, Quarantine
from domain.upload.events import UploadQuarantined
from domain.upload.state import UploadState
from infrastructure.processors.antivirus import ScannerUnavailable, antivirus
from tests.infrastructure.jobs.harness import open_harness, pipeline
from tests.infrastructure.processors.clamav import LARGEST, eicar, running_clamd
from tests.infrastructure.processors.step_context import Table, perform, subject


@pytest.fixture(scope="module")
def clamd() -> Iterator[dict[str, str]]:
    with running_clamd() as addresses:
        yield addresses


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_clean_file_passes_and_an_infected_one_is_held(clamd: dict[str, str], kind: str) -> None:
    options = {"address": clamd[kind]}

    for content in (b"", b"words", os.urandom(700_000)):
        assert perform("antivirus", content, options=options)[0] == {"clean": True}
    with pytest.raises(Quarantine, match=r"Eicar-Test(\.UNOFFICIAL)? was found"):
        perform("antivirus", eicar(), options=options)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_file_too_large_for_the_scanner_fails_or_is_skipped(
    clamd: dict[str, str], kind: str
) -> None:
    large = bytes(LARGEST + 1)

    with pytest.raises(PermanentError, match="raise its StreamMaxLength"):
        perform("antivirus", large, options={"address": clamd[kind]})
    skipping = {"address": clamd[kind], "too_large": "skip"}
    result, _ = perform("antivirus", large, options=skipping)
    assert "more than the virus scanner takes" in result["skipped"]


@pytest.mark.parametrize("address", ["unix:/nowhere/clamd.ctl", "tcp://127.0.0.1:1"])
def test_a_scanner_that_is_not_there_is_worth_another_attempt(address: str) -> None:
    with pytest.raises(ScannerUnavailable, match=f"no virus scanner answers at {address}"):
        perform("antivirus", b"words", options={"address": address})


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (b"", "hung up after 5 bytes without a verdict"),
        (b"stream: broken ERROR\0", "has no verdict: stream: broken ERROR"),
        (b"x" * 10_000, "without a verdict"),
        (None, "said nothing for 0.2 s"),
    ],
)
async def test_a_scanner_without_a_verdict_is_worth_another_attempt(
    says: bytes | None, expected: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"words" + bytes(4))
        if says is None:
            await reader.read()
        writer.write(says or b"")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        options = {"address": address, "silence": 0.2 if says is None else 20.0}
        with pytest.raises(ScannerUnavailable, match=expected):
            await antivirus(subject(b"words"), Table(b"words"), options)


@pytest.mark.parametrize("address", ["clamd", "tcp://host", "tcp://host:x", "http://host:1"])
def test_an_invalid_clamd_address_is_an_error(address: str) -> None:
    with pytest.raises(PermanentError, match="must be unix:/path or tcp://host:port"):
        perform("antivirus", b"", options={"address": address})


async def test_an_infected_upload_goes_to_quarantine_with_the_name_of_the_signature(
    database_url: str, tmp_path: Path, clamd: dict[str, str]
) -> None:
    async with open_harness(
        database_url, tmp_path, pipelines=pipeline("antivirus", address=clamd["unix"])
    ) as harness:
        harness.run({"antivirus": antivirus})
        batch = await harness.batch({"virus.com": eicar(), "notes.txt": b"words"})
        await harness.completed(batch)

        uploads = await harness.uploads(batch)
        assert uploads["notes.txt"].state is UploadState.COMPLETED
        assert uploads["virus.com"].state is UploadState.QUARANTINED
        (held,) = await harness.all_of(UploadQuarantined)
        assert "Eicar-Test" in held.reason
