"""At-least-once delivery in order, from any number of processes, within bounds."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from datetime import timedelta
from typing import Any

import pytest

from application.errors import Unavailable
from application.ports.webhooks import (
    DeadLettered,
    Delivery,
    DeliveryAttempt,
    DeliverySucceeded,
    LeasedDelivery,
    NextInLane,
    PlannedDelivery,
    RetryScheduled,
    Verdict,
)
from application.webhooks.delivery import MAX_LANE_BURST
from domain.webhook.aggregate import ROTATION
from infrastructure.database_errors import LeadershipLost
from infrastructure.postgres.connection import connect
from infrastructure.webhooks import delivery
from infrastructure.webhooks.dispatcher import PostgresDispatcherStore, insert_deliveries
from infrastructure.webhooks.outbox import (
    LEASE_MARGIN,
    MAX_LANES_PER_WEBHOOK,
    PostgresOutbox,
    release,
)
from tests.fault_injection import COUNT_KILLS, end_sessions
from tests.infrastructure.webhooks.harness import (
    DAY,
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

    standing = (await harness.webhooks.load_health([hook.id]))[hook.id]
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

    waiting = (await harness.webhooks.load_health([hook.id]))[hook.id].pending
    assert 10_000 - len(receiver.requests) <= waiting < 10_000
    assert receiver.most_at_once <= MAX_LANES_PER_WEBHOOK
    assert most < 32 * 2**20, f"{most} bytes"


# Races, each by a schedule that the test controls.


SUCCEEDED = DeliverySucceeded()


async def _claim(harness: WebhookHarness) -> list[LeasedDelivery]:
    outbox = PostgresOutbox(harness.pool, harness.timeout)
    return list(await outbox.claim(5, at=harness.clock()))


async def _settle(
    harness: WebhookHarness, due: LeasedDelivery, verdict: Verdict = SUCCEEDED
) -> NextInLane | None:
    outbox = PostgresOutbox(harness.pool, harness.timeout)
    tried = DeliveryAttempt(at=harness.clock(), duration=0.1, status=204)
    return await outbox.complete(due, tried, verdict, at=harness.clock(), keep_lane=True)


async def test_a_lease_lasts_longer_than_its_request_and_is_renewed_with_the_next(
    harness: WebhookHarness,
) -> None:
    hook = await harness.hook("https://example.com/")
    harness.follow()
    batch = await harness.batch()
    await harness.upload(batch, "a")
    await harness.followed(await harness.upload(batch, "b"))

    async def remaining() -> float:
        ((until,),) = await harness.fetch("SELECT due_at FROM webhooks.lanes")
        return float((until - harness.clock()).total_seconds())

    (first,) = await _claim(harness)
    assert first.webhook.id == hook.id
    assert await remaining() > harness.timeout
    harness.skip(harness.timeout)
    after = await _settle(harness, first)

    assert after is not None
    assert after.next is not None
    assert await remaining() > harness.timeout


async def test_a_deliverer_that_stops_leaves_the_lease_that_another_has(
    harness: WebhookHarness,
) -> None:
    await harness.hook("https://example.com/")
    harness.follow()
    await harness.followed(await harness.complete(await harness.batch()))
    slow = await _claim(harness)
    harness.skip(harness.timeout + LEASE_MARGIN + 1)
    (quick,) = await _claim(harness)

    await PostgresOutbox(harness.pool, harness.timeout).release_leases(slow, at=harness.clock())

    assert await _claim(harness) == []
    assert await _settle(harness, quick) is not None


async def test_a_delivery_that_waits_for_its_retry_is_not_made_after_an_earlier_one(
    harness: WebhookHarness,
) -> None:
    hook = await harness.hook("https://example.com/")
    harness.follow()
    batch = await harness.batch()
    first = await harness.upload(batch, "a")
    second = await harness.upload(batch, "b")
    await harness.followed(second)
    (due,) = await _claim(harness)
    after = await _settle(harness, due, DeadLettered())
    assert after is not None
    assert after.next is not None
    await _settle(harness, after.next, RetryScheduled(harness.clock() + timedelta(hours=1)))

    await harness.webhooks.redeliver(hook.id, first, at=harness.clock())
    (again,) = await _claim(harness)

    assert again.delivery.position == first
    assert await _settle(harness, again) == NextInLane(None, None)
    assert await _claim(harness) == []
    harness.skip(3601)
    assert [due.delivery.position for due in await _claim(harness)] == [second]


async def test_a_delivery_that_is_queued_while_its_lane_is_removed_is_made(
    harness: WebhookHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = await harness.hook("https://example.com/")
    harness.follow()
    batch = await harness.batch()
    await harness.followed(await harness.upload(batch, "a"))
    (due,) = await _claim(harness)
    await _settle(harness, due)
    planned = PlannedDelivery(hook.id, 1000, batch, batch, 1, "batch.completed")
    await harness.execute(
        f"INSERT INTO webhooks.lanes (webhook, lane, due_at) VALUES ('{hook.id}', '{batch}', now())"
    )
    async with (
        await connect(harness.url, name="test") as ending,
        await connect(harness.url, name="test") as queueing,
    ):

        async def queue() -> None:
            async with queueing.transaction():
                await insert_deliveries(queueing, [planned], harness.clock())

        async def is_queued_or_waits() -> bool:
            query = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            waits = await harness.fetch(query, queueing.info.backend_pid)
            return tasks[0].done() or bool(waits)

        tasks: list[asyncio.Task[None]] = []
        execute = ending.execute

        async def queue_before_the_lane_is_removed(query: Any, *more: Any, **options: Any) -> Any:
            if query.startswith("DELETE FROM webhooks.lanes"):
                tasks.append(asyncio.create_task(queue()))
                await eventually(is_queued_or_waits)
            return await execute(query, *more, **options)

        monkeypatch.setattr(ending, "execute", queue_before_the_lane_is_removed)
        async with ending.transaction():
            await execute("SELECT FROM webhooks.lanes FOR UPDATE")
            await release(ending, hook.id, batch, harness.clock())
        await asyncio.gather(*tasks)

    assert [due.delivery.position for due in await _claim(harness)] == [1000]


async def test_a_dispatcher_that_was_overtaken_queues_nothing(harness: WebhookHarness) -> None:
    async with await connect(harness.url, name="test") as connection:
        store = PostgresDispatcherStore(connection)
        position = await store.position()
        async with store.begin(position, position + 5):
            pass

        with pytest.raises(LeadershipLost):
            async with store.begin(position, position + 7):
                pass

        assert await store.position() == position + 5


async def test_an_event_recorded_while_the_dispatcher_reads_is_delivered(
    harness: WebhookHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = await harness.hook("https://example.com/")
    batch = await harness.batch()
    positions: list[int] = []
    read = PostgresDispatcherStore.read

    async def read_and_record(*arguments: Any, **options: Any) -> Any:
        found = await read(*arguments, **options)
        if not found and not positions:
            positions.append(await harness.upload(batch, "a"))
        return found

    monkeypatch.setattr(PostgresDispatcherStore, "read", read_and_record)
    harness.follow()
    await eventually(lambda: positions)
    await harness.disable(hook)  # a later event, up to which the log has been followed then

    assert (await harness.webhooks.delivery(hook.id, positions[0])).state == "pending"


async def test_a_delivery_that_is_added_while_the_outbox_is_read_needs_no_poll(
    harness: WebhookHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "OUTBOX_POLL_INTERVAL", 86_400.0)
    claims = 0
    claim = PostgresOutbox.claim

    async def claim_and_be_woken(*arguments: Any, **options: Any) -> Any:
        nonlocal claims
        found = await claim(*arguments, **options)
        claims += 1
        if claims == 1:
            harness.bell.set()
        return found

    monkeypatch.setattr(PostgresOutbox, "claim", claim_and_be_woken)
    await harness.deliver()

    await eventually(lambda: claims == 2, 20)


async def test_a_test_that_fails_does_not_count_towards_the_days_of_failures(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    receiver.answer = always(500)
    hook = await harness.deliver_to(receiver.url)

    await harness.test(hook)

    assert (await harness.webhooks.load_health([hook.id]))[hook.id].failing_since is None


async def test_a_webhook_that_is_enabled_again_has_its_days_of_failures_anew(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    receiver.answer = always(500)
    hook = await harness.deliver_to(receiver.url)
    position = await harness.complete(await harness.batch())
    await harness.tried(hook, position, 1)
    await harness.disable(hook)
    harness.skip(4 * DAY)
    enabled_at = harness.clock()
    await harness.enable(hook)
    harness.bell.set()
    await harness.tried(hook, position, 2)

    since = (await harness.webhooks.load_health([hook.id]))[hook.id].failing_since
    assert since is not None
    assert since >= enabled_at


async def test_a_delivery_made_again_waits_for_the_lease_of_its_lane(
    harness: WebhookHarness,
) -> None:
    hook = await harness.hook("https://example.com/")
    harness.follow()
    batch = await harness.batch()
    first = await harness.upload(batch, "a")
    await harness.followed(await harness.upload(batch, "b"))
    (due,) = await _claim(harness)
    after = await _settle(harness, due, DeadLettered())
    assert after is not None
    assert after.next is not None

    await harness.webhooks.redeliver(hook.id, first, at=harness.clock())

    assert await _claim(harness) == []


async def test_a_long_lane_lets_another_one_pass(
    harness: WebhookHarness, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MAX_CONCURRENT_LANES", 1)
    hook = await harness.hook(receiver.url)
    harness.follow()
    last = await harness.many_uploads(await harness.batch(), MAX_LANE_BURST + 5)
    await harness.followed(last)
    other = await harness.complete(await harness.batch())
    await harness.followed(other)
    await harness.deliver()
    await harness.ended(hook, last)

    assert receiver.positions.index(other) == MAX_LANE_BURST


async def test_a_payload_that_cannot_be_read_for_now_is_no_failure_of_the_receiver(
    harness: WebhookHarness, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = harness.teller.body
    outages: list[int] = []

    async def unavailable_once(delivery: Delivery) -> bytes:
        if not outages:
            outages.append(delivery.position)
            raise Unavailable("the log cannot be read")
        return await body(delivery)

    monkeypatch.setattr(harness.teller, "body", unavailable_once)
    hook = await harness.deliver_to(receiver.url)
    position = await harness.complete(await harness.batch())
    await eventually(lambda: outages)
    assert (await harness.webhooks.delivery(hook.id, position)).attempts == 0
    harness.skip(harness.timeout + LEASE_MARGIN + 1)

    ended = await harness.ended(hook, position)

    assert (ended.state, ended.attempts) == ("delivered", 1)


async def test_a_receiver_does_not_learn_the_address_of_another(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url, "batch.started")
    await harness.batch(notify="https://other.example/hook?token=secret")
    await eventually(lambda: receiver.requests)
    (request,) = receiver.requests
    await harness.ended(hook, request.position)

    assert "other.example" in request.json["data"]["event"]["notify"]
    assert b"secret" not in request.body
