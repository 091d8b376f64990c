"""Syncs by kernel AIO: completion, refusal, cancellation, and a change of the event loop."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infrastructure.blobs.local.kernel_sync import (
    MAX_PENDING_SYNCS,
    KernelSync,
    open_kernel_sync,
)
from tests.support import eventually, run

linux_aio = pytest.importorskip("caio.linux_aio", reason="kernel AIO exists on Linux only")


@pytest.fixture
def kernel_sync() -> Iterator[KernelSync]:
    """Wait for the kernel's AIO limit, which all processes share and which is released late."""
    kernel_sync = run(eventually(open_kernel_sync))
    yield kernel_sync
    kernel_sync.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"bytes")
    yield descriptor
    os.close(descriptor)


async def test_a_file_may_be_closed_while_its_sync_is_pending(
    kernel_sync: KernelSync, tmp_path: Path
) -> None:
    file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"bytes")
    syncing = kernel_sync.submit(file)
    os.close(file)
    assert syncing is not None
    await syncing


async def test_a_sync_beyond_the_limit_is_refused_until_others_complete(
    kernel_sync: KernelSync, file: int
) -> None:
    syncs = [kernel_sync.submit(file) for _ in range(MAX_PENDING_SYNCS)]
    assert kernel_sync.submit(file) is None
    for syncing in syncs:
        assert syncing is not None
        await syncing
    again = kernel_sync.submit(file)
    assert again is not None
    await again


async def test_a_file_that_cannot_be_synced_is_refused_and_does_not_count_as_pending(
    kernel_sync: KernelSync, file: int
) -> None:
    """A pipe has no bytes that could be made durable."""
    readable, writable = os.pipe()
    for _ in range(2 * MAX_PENDING_SYNCS):
        assert kernel_sync.submit(writable) is None
    os.close(readable)
    os.close(writable)
    syncing = kernel_sync.submit(file)
    assert syncing is not None
    await syncing


async def test_an_error_of_the_completion_is_raised(
    kernel_sync: KernelSync, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No healthy disk fails a sync; a write beyond the largest file fails in the same way."""

    def write_too_far(descriptor: int) -> Any:
        return linux_aio.Operation.write(b"bytes", descriptor, 2**62)

    monkeypatch.setattr(kernel_sync, "_new_request", write_too_far)
    syncing = kernel_sync.submit(file)
    assert syncing is not None
    with pytest.raises(OSError) as raised:
        await syncing
    assert raised.value.errno == errno.EFBIG


async def test_a_cancelled_caller_does_not_disturb_the_syncs_of_others(
    kernel_sync: KernelSync, file: int
) -> None:
    cancelled, other = kernel_sync.submit(file), kernel_sync.submit(file)
    assert cancelled is not None
    assert other is not None
    cancelled.cancel()
    await other


def test_a_new_event_loop_continues_after_one_that_ended_with_a_pending_sync(
    kernel_sync: KernelSync, file: int
) -> None:
    async def submit() -> None:
        assert kernel_sync.submit(file) is not None

    async def submit_and_wait() -> None:
        syncing = kernel_sync.submit(file)
        assert syncing is not None
        await syncing

    run(submit())
    run(submit_and_wait())
