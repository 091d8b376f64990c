"""At-least-once delivery in order, from any number of processes, within bounds."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc

import pytest

from application.ports.webhooks import (
    DeliveryAttempt,
    DeliverySucceeded,
    LeasedDelivery,
    NextInLane,
)
from domain.webhook.aggregate import ROTATION
from infrastructure.webhooks.outbox import LEASE_MARGIN, MAX_LANES_PER_WEBHOOK, PostgresOutbox
from tests.fault_injection import COUNT_KILLS, end_sessions
from tests.infrastructure.webhooks.harness import (
    Receiver,
    WebhookHarness,
    after,
    always,
    receiving,
    thanks,
)
from tests.support import eventually


@pytest.mark.parametrize(
    ("table", "moment"),
    [
        ("webhooks.deliveries", "IMMEDIATE"),
        ("webhooks.endpoints", "IMMEDIATE"),
        ("notification_tracking", "IMMEDIATE"),
        ("webhooks.lanes", "DEFERRED"),  # while it commits
    ],
)
async def test_a_follower_that_is_cut_off_neither_loses_nor_repeats_an_event(
    harness: WebhookHarness, table: str, moment: str
) -> None:
    await harness.execute(end_sessions("uptrail-webhooks", table, moment))
    async with receiving() as receiver:
        hook = await harness.deliver_to(receiver.url)
        batch = await harness.batch()
        positions = [await harness.upload(batch, str(n)) for n in range(10)]
        await harness.ended(hook, positions[-1])

        assert receiver.positions == positions
        assert (await harness.fetch(COUNT_KILLS))[0][0] >= 1


async def test_several_dispatchers_and_deliverers_deliver_everything_once_and_in_order(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.hook(receiver.url)
    first = harness.follow()
    harness.follow()
    for _ in range(3):
        await harness.deliver()
    batches = [await harness.batch() for _ in range(6)]
    expected: dict[str, list[int]] = {str(batch): [] for batch in batches}
    for round in range(8):
        for batch in batches:
            expected[str(batch)].append(await harness.upload(batch, str(round)))
        if round == 3:
            await harness.stop(first)
    for positions in expected.values():
        await harness.ended(hook, positions[-1])

    heard: dict[str, list[int]] = {str(batch): [] for batch in batches}
    for request in receiver.requests:
        heard[request.json["data"]["upload"]["batch"]].append(request.position)
    assert heard == expected


async def test_a_deliverer_that_is_killed_in_the_middle_leaves_nothing_untold(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hanging = asyncio.Event()
    receiver.answer = after(hanging)
    hook = await harness.hook(receiver.url)
    harness.follow()
    batch = await harness.batch()
    first, second = await harness.upload(batch, "a"), await harness.upload(batch, "b")
    await harness.followed(second)
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.infrastructure.webhooks.deliverer_process", harness.url
    )
    await eventually(lambda: receiver.positions == [first], 60)
    victim.kill()
    await victim.wait()
    hanging.set()
    receiver.answer = thanks
    await harness.deliver()
    assert (await harness.webhooks.delivery(hook.id, first)).attempts == 0
    harness.skip(harness.timeout + LEASE_MARGIN + 1)  # the lease of the dead one ends
    await harness.ended(hook, second)

    assert receiver.positions == [first, first, second]
    assert receiver.requests[0].id == receiver.requests[1].id
    assert receiver.requests[0].body == receiver.requests[1].body


async def test_a_deliverer_that_lost_the_lease_does_not_record_the_delivery(
    harness: WebhookHarness,
) -> None:
    hook = await harness.hook("https://example.com/")
    harness.follow()
    position = await harness.complete(await harness.batch())
    await harness.followed(position)
    outbox = PostgresOutbox(harness.pool, harness.timeout)
    (slow,) = await outbox.claim(5, at=harness.clock())
    assert await outbox.claim(5, at=harness.clock()) == []
    harness.skip(harness.timeout + LEASE_MARGIN + 1)
    (quick,) = await outbox.claim(5, at=harness.clock())
    tried = DeliveryAttempt(at=harness.clock(), duration=0.1, status=204)

    async def settle(due: LeasedDelivery) -> NextInLane | None:
        return await outbox.complete(
            due, tried, DeliverySucceeded(), at=harness.clock(), keep_lane=True
        )

    assert await settle(slow) is None
    assert (await harness.webhooks.delivery(hook.id, position)).attempts == 0
    assert await settle(quick) == NextInLane(None, None)
    assert (await harness.webhooks.delivery(hook.id, position)).state == "delivered"
    assert await settle(quick) is None


async def test_a_deliverer_that_stops_hands_its_deliveries_over_at_once(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hanging = asyncio.Event()
    receiver.answer = after(hanging)
    hook = await harness.hook(receiver.url)
    harness.follow()
    leaving = await harness.deliver()
    position = await harness.complete(await harness.batch())
    await eventually(lambda: receiver.positions == [position])
    await harness.stop(leaving)
    receiver.answer = thanks
    await harness.deliver()
    await harness.ended(hook, position)
    hanging.set()

    assert receiver.positions == [position, position]


async def test_cutting_every_connection_loses_nothing(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    batch = await harness.batch()
    positions = []
    for n in range(12):
        positions.append(await harness.upload(batch, str(n)))
        if n % 4 == 3:
            await harness.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name IN"
                " ('uptrail-webhooks', 'uptrail-listener')"
            )
    await harness.ended(hook, positions[-1])

    assert receiver.positions == positions


async def test_during_a_rotation_old_and_new_secret_sign_and_then_the_new_one_alone(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    old = await harness.deliver_to(receiver.url)
    new = await harness.rotate(old)
    await harness.ended(new, await harness.complete(await harness.batch()))
    both = receiver.requests[-1]
    assert both.verify(old.secret) == both.verify(new.secret)
    assert len(both.headers["webhook-signature"].split()) == 2

    harness.skip(ROTATION.total_seconds())
    await harness.ended(new, await harness.complete(await harness.batch()))
    alone = receiver.requests[-1]

    assert alone.signed_with(new.secret)
    assert not alone.signed_with(old.secret)


@pytest.mark.options(answer=always(410))
async def test_one_or_all_failures_since_a_time_are_redelivered_before_later_deliveries(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    batch = await harness.batch()
    positions = [await harness.upload(batch, str(n)) for n in range(4)]
    await harness.followed(positions[-1])
    await harness.disabled(hook)
    since = harness.clock()
    # Given up, as after days of trying.
    await harness.execute("UPDATE webhooks.deliveries SET state = 'failed', ended_at = now()")
    assert await harness.webhooks.redeliver_failed(hook.id, harness.clock(), at=since) == 0
    await harness.webhooks.redeliver(hook.id, positions[2], at=since)
    receiver.answer = thanks
    await harness.enable(hook)
    await harness.ended(hook, positions[2])
    assert receiver.positions[1:] == [positions[2]]

    again = await harness.webhooks.redeliver_failed(
        hook.id, since.replace(year=2000), at=harness.clock()
    )
    harness.bell.set()
    await harness.ended(hook, positions[3])

    assert again == 3
    assert receiver.positions[2:] == [positions[0], positions[1], positions[3]]
    one = await harness.webhooks.redeliver(hook.id, positions[0], at=harness.clock())
    assert one.state == "pending"


async def test_pending_deliveries_of_a_webhook_are_bounded_and_dropped_ones_are_counted(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.hook(receiver.url)
    harness.follow(most=5)
    batch = await harness.batch()
    positions = [await harness.upload(batch, str(n)) for n in range(8)]
    await harness.followed(positions[-1])

    standing = (await harness.webhooks.standings([hook.id]))[hook.id]
    assert (standing.pending, standing.missed) == (5, 3)
    assert standing.missed_after == positions[5] - 1
    await harness.deliver()
    await harness.ended(hook, positions[4])
    later = await harness.complete(batch)
    await harness.ended(hook, later)
    assert receiver.positions == [*positions[:5], later]


async def test_a_removed_webhook_has_no_pending_deliveries(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook, other = await harness.hook(receiver.url), await harness.hook(receiver.url)
    harness.follow()
    await harness.followed(await harness.complete(await harness.batch()))
    await harness.remove(hook)
    last = await harness.complete(await harness.batch())
    await harness.deliver()
    await harness.ended(other, last)

    assert len(receiver.requests) == 2
    for table in ("endpoints", "secrets", "deliveries", "lanes"):
        rows = await harness.fetch(f"SELECT DISTINCT * FROM webhooks.{table}")
        assert hook.id not in [value for row in rows for value in row], table


async def test_old_deliveries_and_secrets_that_sign_no_more_are_not_kept(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    await harness.rotate(hook)
    await harness.webhooks.make_secret(hook.id)  # for a command that never came
    old = await harness.complete(await harness.batch())
    await harness.ended(hook, old)
    moment = harness.clock()
    new = await harness.complete(await harness.batch())
    await harness.ended(hook, new)
    await harness.execute("UPDATE webhooks.secrets SET made_at = now() - interval '2 days'")

    assert await PostgresOutbox(harness.pool, 1.0).delete_expired(moment) == 1
    left = await harness.webhooks.deliveries(hook.id)
    assert [delivery.position for delivery in left] == [new]
    assert (await harness.fetch("SELECT count(*) FROM webhooks.secrets")) == [(2,)]


async def test_ten_thousand_simultaneous_events_are_queued_and_delivered_in_bounded_memory(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.hook(receiver.url, "upload.completed")
    for _ in range(10):
        last = await harness.many_uploads(await harness.batch(), 1000)
    tracemalloc.start()
    harness.follow()
    await harness.followed(last)
    await harness.deliver()
    await eventually(lambda: len(receiver.requests) >= 40)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    waiting = (await harness.webhooks.standings([hook.id]))[hook.id].pending
    assert 10_000 - len(receiver.requests) <= waiting < 10_000
    assert receiver.most_at_once <= MAX_LANES_PER_WEBHOOK
    assert most < 32 * 2**20, f"{most} bytes"
