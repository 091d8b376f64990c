from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from application.ports.auth import Scope
from application.ports.limits import StorageUsage
from application.transfers.errors import BatchFull, QuotaExceeded, TooManyTransfers
from application.transfers.quotas import Quota, Quotas
from domain.file import FileDeclaration
from infrastructure.postgres.pool import make_pool
from infrastructure.read_model.projector import catch_up
from infrastructure.read_model.queries import PostgresUsage
from tests.fakes import InProcessTransferLimiter
from tests.interfaces.uploads.raw_http import Sender
from tests.interfaces.uploads.server import BYTES, OWNER, TUS, Server, filename, serving, upload_in
from tests.support import eventually

BATCH = UUID(int=1)


async def _send(server: Server, path: str, name: str, body: bytes, **more: str) -> int:
    headers = {**BYTES, **filename(name), "Upload-Length": str(len(body)), **more}
    answer = await server.ask("POST", path, headers=headers, data=body)
    if answer.status >= 400:
        assert answer.json["detail"]
    return answer.status


@pytest.mark.options(max_owner_bytes=100)
async def test_an_owner_keeps_no_more_than_is_allowed(server: Server) -> None:
    assert await _send(server, "/v1/uploads", "a", bytes(60)) == 201
    assert await _send(server, "/v1/uploads", "b", bytes(41)) == 507
    assert await _send(server, "/v1/uploads", "c", bytes(40)) == 201
    assert await _send(server, "/v1/uploads", "d", b"x") == 507
    rival = server.as_(await server.key_with(Scope.UPLOADER, owner="rival"))
    assert await _send(server, "/v1/uploads", "a", bytes(60), **rival) == 201


@pytest.mark.options(max_owner_bytes=100)
async def test_bytes_of_unknown_number_are_measured_as_they_are_announced(server: Server) -> None:
    headers = {**TUS, "Upload-Defer-Length": "1"}
    answer = await server.ask("POST", "/v1/uploads", headers=headers)
    location = answer.headers["Location"]
    assert await server.patch(location, 0, bytes(101)) == 507
    assert await server.patch(location, 0, bytes(100)) == 204


@pytest.mark.options(max_batch_files=2)
async def test_a_batch_holds_no_more_than_is_allowed_however_its_files_were_declared(
    database_url: str, server: Server
) -> None:
    names = [FileDeclaration(path=name, size=5) for name in ("a", "b")]
    path = f"/v1/batches/{await server.start_batch(*names)}/uploads"
    await catch_up(database_url, server.services.log)
    assert await _send(server, path, "a", b"hello") == 201
    assert await _send(server, path, "b", b"hello") == 201
    assert await _send(server, path, "c", b"hello") == 413
    batch = await server.start_batch(*names, FileDeclaration(path="c", size=5))
    path = f"/v1/batches/{batch}/uploads"
    await catch_up(database_url, server.services.log)
    headers = {**TUS, "Upload-Length": "5", "Upload-Metadata": "filename Yw=="}
    answer = await server.ask("POST", path, headers=headers)
    location = answer.headers["Location"]
    assert await server.patch(location, 0, b"hello") == 413


async def _ask(server: Server, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    answer = await server.ask("POST", path, json=body, headers=headers)
    return answer.status, answer.json


async def test_a_manifest_over_quota_starts_no_batch_and_names_the_limit(
    database_url: str, tmp_path: Path
) -> None:
    def files(*sizes: int) -> dict[str, Any]:
        return {"files": [{"path": f"f{n}", "size": size} for n, size in enumerate(sizes)]}

    limits = {"max_batch_files": 3, "max_owner_bytes": 100}

    async with serving(database_url, tmp_path, **limits) as server:
        head = await server.services.log.head()
        status, problem = await _ask(server, "/v1/batches", files(1, 1, 1, 1))
        assert (status, problem["code"]) == (413, "batch_full")
        assert "3 files" in problem["detail"]
        status, problem = await _ask(server, "/v1/batches", files(60, 41))
        assert (status, problem["code"]) == (507, "quota_exceeded")
        assert "100 bytes" in problem["detail"]
        assert await server.services.log.head() == head

        key = {"Idempotency-Key": "once"}
        assert (await _ask(server, "/v1/batches", files(60, 40), **key))[0] == 201
        assert (await _ask(server, "/v1/batches", files(60, 40), **key))[0] == 200
        assert (await _ask(server, "/v1/batches", files(1)))[0] == 507


@pytest.mark.options(max_owner_bytes=100)
async def test_files_of_a_list_are_admitted_one_by_one(server: Server) -> None:
    path = f"/v1/batches/{await server.start_batch()}/uploads"
    names = [("a", 60), ("b", 41), ("c", 40), ("d", 1), ("../e", 1), ("f", 0)]
    files = [{"path": name, "size": size} for name, size in names]
    status, answer = await _ask(server, path, files)

    assert status == 200
    outcomes = [(file["status"], file.get("code")) for file in answer["files"]]
    assert outcomes == [
        ("added", None),
        ("rejected", "quota_exceeded"),
        ("added", None),
        ("rejected", "quota_exceeded"),
        ("rejected", "invalid"),
        ("added", None),
    ]
    assert "100 bytes" in answer["files"][1]["message"]
    # Known files count already, and a refused one may be sent again.
    _, again = await _ask(server, path, files[:3])
    assert [file["status"] for file in again["files"]] == ["known", "rejected", "known"]


@pytest.mark.options(max_batch_files=1500)
async def test_lines_are_admitted_as_they_arrive(server: Server) -> None:
    path = f"/v1/batches/{await server.start_batch()}/uploads"
    lines = b"".join(b'{"path": "f%d"}\n' % number for number in range(2500))
    kind = {"Content-Type": "application/x-ndjson"}
    answer = await server.ask("POST", path, data=lines, headers=kind)
    outcomes = answer.json
    assert (outcomes["added"], outcomes["rejected"]) == (1500, 1000)
    assert outcomes["files"][1499]["status"] == "added"
    assert outcomes["files"][1500]["code"] == "quota_exceeded"


async def test_removed_bytes_do_not_count_towards_the_quota(
    database_url: str, server: Server
) -> None:
    async with make_pool(database_url, name="usage", max_size=1) as pool:
        kept, gone = await server.create(10), await server.create(20)
        assert (await server.ask("DELETE", gone, headers=TUS)).status == 204
        await catch_up(database_url, server.services.log)
        usage = PostgresUsage(pool)
        assert await usage.of_owner(OWNER) == StorageUsage(10, 1)
        assert await usage.of_owner("rival") == StorageUsage()
        batch = (await server.services.log.upload(upload_in(kept))).batch
        assert await usage.of_batch(batch) == StorageUsage(10, 1)


@pytest.mark.parametrize("where", ["one process", "two processes"])
@pytest.mark.options(max_owner_transfers=1)
async def test_only_so_many_transfers_of_an_owner_run_at_once(
    where: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setattr("application.transfers.quotas.PERMIT_TIMEOUT", 0.25)

    async with (
        serving(database_url, tmp_path, max_owner_transfers=1) as another,
        Sender(server if where == "one process" else another) as sender,
    ):
        first, second = await server.create(10), await server.create(10)
        await sender.begin_patch(first, 0, 10, b"01234")
        blob = f"uploads/{upload_in(first)}"

        async def arrived() -> bool:
            return await server.services.blobs.size(blob) == 5

        await eventually(arrived)
        answer = await server.ask(
            "PATCH", second, headers={**BYTES, "Upload-Offset": "0"}, data=b"0123456789"
        )
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert await server.offset(first) == 5  # the newest request still wins
        assert await server.patch(second, 0, b"0123456789") == 204


@pytest.mark.options(max_owner_transfers=1)
async def test_a_transfer_waits_a_moment_for_another_one_of_its_owner_to_end(
    server: Server,
) -> None:
    async with Sender(server) as sender:
        first, second = await server.create(10), await server.create(10)
        await sender.begin_patch(first, 0, 10, b"01234")
        blob = f"uploads/{upload_in(first)}"

        async def arrived() -> bool:
            return await server.services.blobs.size(blob) == 5

        await eventually(arrived)
        waiting = asyncio.create_task(server.patch(second, 0, b"0123456789"))
        await eventually(lambda: len(server.transfers.upload_locks) == 2)
        # A newer request does not wait behind a waiting one.
        assert await server.offset(second) == 0
        assert await waiting == 423

        waiting = asyncio.create_task(server.patch(second, 0, b"0123456789"))
        await eventually(lambda: len(server.transfers.upload_locks) == 2)
        await sender.send(b"56789")
        assert (await sender.answer())[0] == 204
        assert await waiting == 204


async def test_a_sender_that_drips_is_given_up_and_its_bytes_are_kept(
    database_url: str, tmp_path: Path
) -> None:
    limits = {"transfer_idle_timeout": 0.3, "min_transfer_rate": 1000}

    async with serving(database_url, tmp_path, **limits) as server, Sender(server) as sender:
        location = await server.create(1000)
        await sender.begin_patch(location, 0, 1000, b"x")
        answer = asyncio.create_task(sender.answer())
        sent = 1
        while not answer.done():
            with suppress(ConnectionError):  # the answer may be read after it was closed
                await sender.send(b"x")
                sent += 1
            await asyncio.sleep(0.02)
        status, _ = await answer
        assert status == 503
        assert 0 < await server.offset(location) <= sent
        assert "upload.transfer_interrupted" in await server.topics(location)


class _Scripted:
    """Figures as a test sets them, and how often they were asked for."""

    def __init__(self, used: StorageUsage) -> None:
        self.used = used
        self.asked = 0

    async def of_owner(self, owner: str) -> StorageUsage:
        self.asked += 1
        return self.used

    async def of_batch(self, batch: UUID) -> StorageUsage:
        self.asked += 1
        return self.used


async def test_figures_are_remembered_for_a_moment_and_what_was_admitted_is_added() -> None:
    usage, now = _Scripted(StorageUsage(50, 1)), 0.0
    quotas = Quotas(
        usage,
        lambda: now,
        slots=InProcessTransferLimiter(),
        owner=Quota(bytes=100),
        batch=Quota(files=3),
    )

    await quotas.admit("acme", BATCH, 30)
    with pytest.raises(QuotaExceeded, match="100 bytes"):
        await quotas.admit("acme", BATCH, 21)
    await quotas.admit("acme", BATCH, 20)
    with pytest.raises(BatchFull, match="3 files"):
        await quotas.admit("acme", BATCH, 0)
    assert usage.asked == 2
    usage.used, now = StorageUsage(10, 1), 10.0
    await quotas.admit("acme", BATCH, 90)
    assert usage.asked == 4


class _FullLimiter:
    """Limiter without a free permit, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def acquire(self, owner: str, most: int) -> None:
        self.asked += 1


async def test_transfers_that_wait_for_a_permit_are_bounded_and_make_room_when_they_give_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("application.transfers.quotas.MAX_WAITING_TRANSFERS", 1)
    limiter, waits = _FullLimiter(), asyncio.Event()
    quotas = Quotas(_Scripted(StorageUsage()), lambda: 0.0, slots=limiter, transfers=1)

    async def wait() -> None:
        async with quotas.transfer_permit("acme", waits.set):
            pass

    for _ in range(2):
        waits.clear()
        waiting = asyncio.create_task(wait())
        await asyncio.wait(
            {waiting, asyncio.ensure_future(waits.wait())}, return_when=asyncio.FIRST_COMPLETED
        )
        assert not waiting.done()
        asked = limiter.asked
        with pytest.raises(TooManyTransfers):
            await wait()
        assert limiter.asked == asked + 1  # one that does not wait asks once
        waiting.cancel()
        await asyncio.wait({waiting})


@pytest.mark.options(max_owner_bytes=100)
async def test_parts_do_not_get_around_the_quota_of_their_owner(server: Server) -> None:
    async def part(size: int) -> tuple[int, str]:
        headers = {**BYTES, "Upload-Length": str(size), "Upload-Concat": "partial"}
        answer = await server.ask("POST", "/v1/uploads", headers=headers, data=bytes(size))
        return answer.status, answer.headers.get("Location", "")

    async def join(*parts: str) -> int:
        headers = {**TUS, "Upload-Concat": f"final;{' '.join(parts)}"}
        return (await server.ask("POST", "/v1/uploads", headers=headers)).status

    assert (await part(101))[0] == 507
    (_, large), (_, small), (status, fitting) = await part(60), await part(41), await part(40)
    assert status == 201
    assert await join(large, small) == 507
    assert await join(large, fitting) == 201
    assert (await part(1))[0] == 507
