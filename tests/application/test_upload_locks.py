from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from application.transfers.errors import Preempted
from application.transfers.locks import UploadLocks
from tests.support import eventually

UPLOAD = UUID(int=1)


async def test_a_request_cancelled_while_it_waits_lets_no_other_past_the_holder() -> None:
    locks, order = UploadLocks(), list[str]()

    async def hold(name: str) -> None:
        async with locks.acquire(UPLOAD):
            order.append(name)

    async with locks.acquire(UPLOAD) as holder:
        cancelled = asyncio.create_task(hold("cancelled"))
        await eventually(lambda: holder.is_preempted)
        last = asyncio.create_task(hold("last"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        late = asyncio.create_task(hold("late"))
        for _ in range(10):  # rounds of the loop in which one of them could get in
            await asyncio.sleep(0)
        assert order == []
        order.append("holder")

    with pytest.raises(Preempted):
        await last
    await late
    assert order == ["holder", "late"]
    assert len(locks) == 0
