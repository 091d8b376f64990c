"""Files that kill their worker fail permanently, and no other file fails with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from application.pipeline import Pipeline, Step
from domain.batch.state import Outcome
from domain.retry import RetryPolicy
from domain.upload.aggregate import MAX_MESSAGE
from domain.upload.events import AttemptAbandoned, AttemptFailed, AttemptSucceeded, UploadFailed
from domain.upload.state import UploadState
from infrastructure.processors.registry import check_pipelines, known_options, open_processors
from infrastructure.settings_loader import BadSetting
from tests.crash.pills import HARMLESS, PILLS, installed
from tests.infrastructure.jobs.harness import open_harness, pipeline
from tests.server_process import open_cluster, steps
from tests.server_process import wait_for as until
from tests.support import eventually

TIMEOUT = "StepTimeout"
ABANDONED = "upload.attempt_abandoned"
TWICE = RetryPolicy(attempts=2, first_delay=0.01, longest_delay=0.02)
MEMORY = 256 * 1024 * 1024
CONTENT = b"abcdefgh" * 50_000  # several chunks


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package; processes of steps are left nowhere after the test."""
    folder = installed(tmp_path / "packages")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PILLS_FOLDER", str(tmp_path))
    yield tmp_path
    left = [
        process
        for process in psutil.process_iter()
        if str(tmp_path) in "".join(_environment(process).values())
    ]
    assert left == []


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        found: dict[str, str] = process.environ()
    except psutil.Error:
        return {}
    return {} if process.pid == os.getpid() else found


@pytest.mark.timeout(180)
async def test_each_way_to_die_is_a_verdict_and_harmless_files_complete(
    database_url: str, package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_harness(
        database_url, package, pipelines=pipeline("pill", timeout=120.0)
    ) as harness:
        async with open_processors(processes=4, memory=MEMORY) as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            pills = {name: error for name, (_, error) in PILLS.items() if error != TIMEOUT}
            files = {f"{name}.bin": b"x" for name in pills}
            harmless = [f"{name}.bin" for name in HARMLESS] + [f"{n}.txt" for n in range(20)]
            batch = await harness.batch(
                files | dict.fromkeys(harmless, CONTENT), retry_policy=TWICE
            )
            done = await harness.completed(batch, deadline=150)
            await harness.stop(worker)

        assert done.outcome is Outcome.COMPLETED_WITH_FAILURES
        uploads = await harness.uploads(batch)
        for path in harmless:
            assert uploads[path].state is UploadState.COMPLETED, path
            assert len(await harness.all_of(AttemptSucceeded, uploads[path].id)) == 1
        for name, error_type in pills.items():
            id = uploads[f"{name}.bin"].id
            failures = await harness.all_of(AttemptFailed, id)
            assert {failure.error_type for failure in failures} == {error_type}, (name, failures)
            assert len(failures) == 2
            assert all(0 < len(failure.message) <= MAX_MESSAGE for failure in failures)
            (failed,) = await harness.all_of(UploadFailed, id)
            assert failed.message == failures[-1].message
        assert await harness.all_of(AttemptAbandoned) == []  # the worker lived through all of it
        assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_a_step_that_never_ends_is_ended_whatever_it_does(
    database_url: str, package: Path
) -> None:
    async with open_harness(
        database_url, package, pipelines=pipeline("pill", timeout=1.0)
    ) as harness:
        async with open_processors(processes=4, memory=MEMORY) as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            endless = [name for name, (_, error) in PILLS.items() if error == TIMEOUT]
            batch = await harness.batch(
                {f"{name}.bin": b"x" for name in endless}, retry_policy=TWICE
            )
            await harness.completed(batch, deadline=150)
            await harness.stop(worker)

        failures = await harness.all_of(AttemptFailed)
        assert [failure.error_type for failure in failures] == [TIMEOUT] * 2 * len(endless)
        assert await harness.all_of(AttemptAbandoned) == []


async def test_a_plain_function_reads_reports_and_attaches(
    database_url: str, package: Path
) -> None:
    async with open_harness(database_url, package, pipelines=pipeline("plain")) as harness:
        async with open_processors(processes=1) as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            batch = await harness.batch({"a.txt": CONTENT, "b.txt": b""})
            await harness.completed(batch)
            await harness.stop(worker)

        uploads = await harness.uploads(batch)
        for path, content in (("a.txt", CONTENT), ("b.txt", b"")):
            (succeeded,) = await harness.all_of(AttemptSucceeded, uploads[path].id)
            assert succeeded.results == {"plain": {"size": len(content)}}
            blob = succeeded.artifacts["size.txt"]
            kept = b"".join([chunk async for chunk in harness.blobs.read(blob)])
            assert kept == str(len(content)).encode()


async def test_a_workbench_in_another_process_refuses_what_the_worker_refuses(
    database_url: str, package: Path
) -> None:
    async with open_harness(database_url, package, pipelines=pipeline("reads")) as harness:
        async with open_processors(processes=1) as processors:
            harness.orchestrate()
            worker = harness.work(processors)
            batch = await harness.batch({"a.txt": b"abcdefgh", "b.txt": b"abcdefgh"})
            await harness.completed(batch)
            await harness.stop(worker)

        succeeded = await harness.all_of(AttemptSucceeded)
        results = [event.results["reads"] for event in succeeded]
        assert len(results) == 2
        assert len({result.pop("pid") for result in results}) == 1  # a clean process is used again
        for result in results:
            assert result["first"] == "defgh"
            assert result["parts"] == ["abcd", "efgh"]
            unnamed, taken = result["refusals"]
            assert "no name for an artifact" in unnamed
            assert "attached already" in taken


async def test_a_cancelled_step_may_clean_up_and_its_process_is_gone(
    database_url: str, package: Path
) -> None:
    async with (
        open_harness(database_url, package, pipelines=pipeline("polite")) as harness,
        open_processors(processes=1) as processors,
    ):
        harness.orchestrate()
        worker = harness.work(processors)
        batch = await harness.batch({"a.txt": b"x"})
        pid = int(await eventually(lambda: _text(package / "began")))

        await harness.cancel(batch)

        await harness.completed(batch)
        await eventually(lambda: not psutil.pid_exists(pid))
        assert (package / "cleaned").exists()
        await harness.stop(worker)


async def test_an_interrupted_worker_does_not_count_as_a_loss(
    database_url: str, package: Path
) -> None:
    async with (
        open_harness(
            database_url, package, pipelines=pipeline("polite"), max_worker_losses=1
        ) as harness,
        open_processors(processes=1) as processors,
    ):
        harness.orchestrate()
        batch = await harness.batch({"a.txt": b"x"})
        for _ in range(3):
            (package / "began").unlink(missing_ok=True)
            worker = harness.work(processors)
            await eventually(lambda: _text(package / "began"))
            await harness.stop(worker)

        (upload,) = (await harness.uploads(batch)).values()
        assert (upload.state, upload.losses) == (UploadState.QUEUED, 0)
        assert len(await harness.all_of(AttemptAbandoned)) == 3


def test_a_processor_that_cannot_be_imported_is_named_at_the_start(package: Path) -> None:
    pipelines = {"texts": Pipeline(steps=(Step(processor="missing"),))}

    with pytest.raises(BadSetting, match=r"cannot be loaded: ModuleNotFoundError: .*nowhere"):
        check_pipelines(pipelines, known_options())


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("processes", [1, 2])
def test_dying_steps_never_end_the_server(
    database_url: str, tmp_path: Path, processes: int
) -> None:
    chosen = {"pipelines": {"default": steps("pill")}, "processes": processes}
    quick = {"attempts": 2, "first_delay": 0.01, "longest_delay": 0.02}
    with open_cluster(database_url, tmp_path, retry_policy=quick, **chosen) as cluster:
        server = cluster.start()
        pills = {f"{name}.bin": b"x" for name in ("exit", "sigkill", "segfault", "system-exit")}

        batch = cluster.admin.send_batch(pills | {f"{n}.txt": b"fine" for n in range(8)})

        until(lambda: cluster.admin.batch(batch)["outcome"] == "completed_with_failures")
        assert server.poll() is None
        states = {path: upload["state"] for path, upload in cluster.admin.uploads(batch).items()}
        assert {states.pop(path) for path in pills} == {"failed"}
        assert set(states.values()) == {"completed"}
        assert cluster.fetch("SELECT count(*) FROM stored_events WHERE topic = %s", ABANDONED) == [
            (0,)
        ]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
@pytest.mark.timeout(240)
def test_a_file_that_kills_the_worker_itself_fails_and_the_api_goes_on(
    database_url: str, tmp_path: Path
) -> None:
    chosen = {"pipelines": {"default": steps("pill")}, "processes": 2}
    hasty = {"worker_heartbeat": 0.2, "worker_dead_after": 2, "max_worker_losses": 2}
    with open_cluster(database_url, tmp_path, **chosen, **hasty) as cluster:
        server = cluster.start()

        batch = cluster.admin.send_batch(
            {"kill-worker.bin": b"x", **{f"{n}.txt": b"fine" for n in range(8)}}
        )

        until(lambda: cluster.admin.batch(batch)["outcome"] == "completed_with_failures")
        assert server.poll() is None
        uploads = cluster.admin.uploads(batch)
        assert "2 workers were lost" in uploads.pop("kill-worker.bin")["error"]
        assert {upload["state"] for upload in uploads.values()} == {"completed"}
