from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from domain.batch.state import Outcome
from domain.retry import RetryPolicy
from domain.upload.events import (
    AttemptAbandoned,
    AttemptFailed,
    AttemptSucceeded,
    FileProgressed,
)
from domain.upload.state import UploadState
from infrastructure.outbound import signature_headers
from infrastructure.processors.http import PostgresRemoteSteps
from tests.infrastructure.jobs.harness import PipelineHarness
from tests.interfaces.rest.remote_step import SECRET, Data, Service, open_remote_steps
from tests.support import eventually, free_port

EXAMPLE = Path(__file__).parents[3] / "docs/examples/http_service.py"


def answering(status: int, said: Any = None) -> Service:
    async def answer(data: Data) -> tuple[int, Any]:
        return status, said

    return Service(answer)


async def test_a_service_gets_a_signed_request_and_its_answer_is_the_result(
    database_url: str, tmp_path: Path
) -> None:
    service = answering(200, {"result": {"pages": 3}})

    async with open_remote_steps(
        database_url, tmp_path, service, parameters={"dpi": 90}
    ) as harness:
        harness.work()
        done = await harness.harness.completed(await harness.harness.batch({"a/b.pdf": b"%PDF-"}))

        assert done.outcome is Outcome.SUCCEEDED
        (succeeded,) = await harness.harness.all_of(AttemptSucceeded)
        assert succeeded.results == {"http": {"pages": 3}}

    (data,), (headers,), (body,) = service.asked, service.headers, service.bodies
    assert (data["path"], data["size"], data["attempt"]) == ("a/b.pdf", 5, 1)
    assert data["parameters"] == {"dpi": 90}
    expected = signature_headers(
        headers["webhook-id"], int(headers["webhook-timestamp"]), body, SECRET
    )
    assert headers["webhook-signature"] == expected["webhook-signature"]


async def test_a_service_may_take_its_time_report_progress_and_answer_once(
    database_url: str, tmp_path: Path
) -> None:
    async def progress_of(harness: PipelineHarness) -> list[FileProgressed]:
        events = await harness.all_of(FileProgressed)
        return [event for event in events if event.phase == "http" and event.done]

    async with open_remote_steps(database_url, tmp_path, answering(202)) as harness:
        harness.work()
        batch = await harness.harness.batch({"a.txt": b"words"})
        data = await harness.asked(1)

        # To ask what is there does not use the link up; to fetch it does.
        head = await harness.server.ask("HEAD", data["content_url"], key=None)
        assert head.status >= 400
        assert await harness.fetch(data) == (200, b"words")
        assert (await harness.fetch(data))[0] == 410
        assert await harness.say(data, progress={"done": 1, "total": 4}) == 204
        await harness.harness.until(lambda: progress_of(harness.harness))
        assert await harness.say(data, result={"words": 1}) == 204
        assert await harness.say(data, result={"words": 2}) in (409, 410)
        assert await harness.say(data, progress={"done": 2}) in (409, 410)

        assert (await harness.harness.completed(batch)).outcome is Outcome.SUCCEEDED
        (succeeded,) = await harness.harness.all_of(AttemptSucceeded)
        assert succeeded.results == {"http": {"words": 1}}
        progressed = (await progress_of(harness.harness))[0]
        assert (progressed.done, progressed.total) == (1, 4)
        assert await harness.say(data, result={"words": 3}) == 410
        assert await harness.harness.fetch("SELECT 1 FROM errands") == []


@pytest.mark.parametrize(
    ("kind", "state", "attempts"),
    [
        ("retryable", UploadState.FAILED, 3),
        ("permanent", UploadState.FAILED, 1),
        ("quarantine", UploadState.QUARANTINED, 1),
    ],
)
async def test_a_reported_error_decides_what_becomes_of_the_file(
    database_url: str, tmp_path: Path, kind: str, state: UploadState, attempts: int
) -> None:
    service = answering(200, {"error": {"message": "page 7 is odd", "kind": kind}})

    async with open_remote_steps(database_url, tmp_path, service) as harness:
        harness.work()
        batch = await harness.harness.batch({"a.txt": b"words"})
        await harness.harness.completed(batch)

        assert (await harness.harness.uploads(batch))["a.txt"].state is state
        failures = await harness.harness.all_of(AttemptFailed)
        assert [failure.message for failure in failures] == ["page 7 is odd"] * attempts


@pytest.mark.parametrize(
    ("service", "message"),
    [
        (answering(503, "busy"), 'the service answered 503: "busy"'),
        (answering(302), "302: redirects are not followed"),
        (answering(200, {"words": 1}), "the service's answer makes no sense"),
        (answering(200, {"progress": {"done": 1}}), "202 says that it goes on"),
        (Service(answering(200).answer, url="http://127.0.0.1:1/"), "the service cannot be asked"),
    ],
)
async def test_a_service_that_does_not_do_its_part_is_asked_again(
    database_url: str, tmp_path: Path, service: Service, message: str
) -> None:
    async with open_remote_steps(database_url, tmp_path, service) as harness:
        harness.work()
        await harness.harness.completed(await harness.harness.batch({"a.txt": b"words"}))

        failures = await harness.harness.all_of(AttemptFailed)
        assert len(failures) == 3
        assert all(message in failure.message and not failure.permanent for failure in failures)


async def test_a_service_that_stays_silent_costs_an_attempt_and_comes_too_late(
    database_url: str, tmp_path: Path
) -> None:
    async with open_remote_steps(database_url, tmp_path, answering(202), timeout=1.5) as harness:
        harness.work()
        twice = RetryPolicy(attempts=2, first_delay=0.05)
        batch = await harness.harness.batch({"a.txt": b"words"}, retry_policy=twice)
        first = await harness.asked(1)
        await harness.asked(2)

        assert await harness.say(first, result={}) == 410
        assert (await harness.fetch(first))[0] == 410
        assert (await harness.harness.completed(batch)).outcome is Outcome.FAILED
        failures = await harness.harness.all_of(AttemptFailed)
        assert {failure.error_type for failure in failures} == {"StepTimeout"}


async def test_a_late_report_for_an_abandoned_attempt_is_refused_and_the_next_attempt_counts(
    database_url: str, tmp_path: Path
) -> None:
    async with open_remote_steps(database_url, tmp_path, answering(202)) as harness:
        worker = harness.work()
        batch = await harness.harness.batch({"a.txt": b"words"})
        first = await harness.asked(1)
        await harness.harness.stop(worker)
        await harness.harness.until(lambda: harness.harness.all_of(AttemptAbandoned))

        assert await harness.say(first, result={"from": 1}) == 410
        harness.work()
        second = await harness.asked(2)
        assert await harness.say(first, result={"from": 1}) == 410
        assert await harness.say(second, result={"from": 2}) == 204

        assert (await harness.harness.completed(batch)).outcome is Outcome.SUCCEEDED
        (succeeded,) = await harness.harness.all_of(AttemptSucceeded)
        assert succeeded.results == {"http": {"from": 2}}


async def test_the_errand_of_a_worker_that_was_killed_is_fenced_by_the_log(
    database_url: str, tmp_path: Path
) -> None:
    async with open_remote_steps(database_url, tmp_path, answering(200, {"result": {}})) as harness:
        harness.work()
        batch = await harness.harness.batch({"a.txt": b"words"})
        await harness.harness.completed(batch)
        upload = (await harness.harness.uploads(batch))["a.txt"].id
        # As a worker that was killed leaves it.
        left = await PostgresRemoteSteps(harness.harness.pool).open(upload, 1, download_within=60)
        data = {
            "callback_url": f"/v1/callbacks/{left.callback}",
            "content_url": f"/v1/callbacks/{left.download}/content",
        }

        assert await harness.say(data, result={}) == 410
        assert (await harness.fetch(data))[0] == 410


async def test_a_download_link_ends_by_itself(database_url: str, tmp_path: Path) -> None:
    async with open_remote_steps(
        database_url, tmp_path, answering(202), download_within=0.01
    ) as harness:
        harness.work()
        await harness.harness.batch({"a.txt": b"words"})
        data = await harness.asked(1)

        async def over() -> bool:
            return bool(await harness.harness.fetch("SELECT 1 WHERE now() > %s", data_until))

        ((data_until,),) = await harness.harness.fetch("SELECT download_until FROM errands")
        await eventually(over)
        assert (await harness.fetch(data))[0] == 410
        assert await harness.say(data, result={}) == 204


@pytest.mark.parametrize(
    ("report", "status"),
    [
        ({}, 422),
        ({"result": {}, "error": {"message": "x"}}, 422),
        ({"result": [1]}, 422),
        ({"result": {"text": "x" * 70_000}}, 422),
        ({"progress": {"done": 2, "total": 1}}, 422),
        ({"progress": {"done": -1}}, 422),
        ({"error": {"message": "x", "kind": "fatal"}}, 422),
        ({"outcome": "fine"}, 422),
    ],
)
async def test_an_invalid_report_is_refused_and_may_be_corrected(
    database_url: str, tmp_path: Path, report: Any, status: int
) -> None:
    async with open_remote_steps(database_url, tmp_path, answering(202)) as harness:
        harness.work()
        batch = await harness.harness.batch({"a.txt": b"words"})
        data = await harness.asked(1)

        assert await harness.say(data, **report) == status
        assert await harness.say(data, result={}) == 204
        assert (await harness.harness.completed(batch)).outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("token", ["x", "a" * 43, "6ad56b4c-0de4-4c0f-9f1e-2f8e4d4a7c11"])
async def test_a_made_up_ticket_opens_nothing(
    database_url: str, tmp_path: Path, token: str
) -> None:
    async with open_remote_steps(database_url, tmp_path, answering(202)) as harness:
        data = {
            "callback_url": f"/v1/callbacks/{token}",
            "content_url": f"/v1/callbacks/{token}/content",
        }
        assert await harness.say(data, result={}) == 410
        assert (await harness.fetch(data))[0] == 410


async def test_the_example_service_counts_words_at_once_and_later(
    database_url: str, tmp_path: Path
) -> None:
    files = {"short.txt": b"two words", "long.txt": b"word " * 1000, "none.txt": b""}
    service = answering(500)

    async with (
        example_service() as service.url,
        open_remote_steps(database_url, tmp_path, service) as harness,
    ):
        harness.work()
        batch = await harness.harness.batch(files)
        assert (await harness.harness.completed(batch)).outcome is Outcome.SUCCEEDED
        for path, upload in (await harness.harness.uploads(batch)).items():
            (succeeded,) = await harness.harness.all_of(AttemptSucceeded, upload.id)
            assert succeeded.results["http"] == {"words": len(files[path].split())}


@asynccontextmanager
async def example_service() -> AsyncIterator[str]:
    port = free_port()
    environ = {**os.environ, "SECRET": SECRET}
    with subprocess.Popen(
        [sys.executable, str(EXAMPLE), str(port)], env=environ, stderr=subprocess.DEVNULL
    ) as process:
        try:
            await _answers(port)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.send_signal(signal.SIGKILL)


async def _answers(port: int) -> None:
    def connects() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    await eventually(connects)
