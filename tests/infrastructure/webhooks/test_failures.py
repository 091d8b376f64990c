"""Failing receivers: pending deliveries, retries, and isolation from other receivers."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from aiohttp import web

from application.webhooks.delivery import DELAYS
from infrastructure.webhooks.outbox import MAX_LANES_PER_WEBHOOK
from tests.infrastructure.webhooks.harness import (
    DAY,
    Receiver,
    Request,
    WebhookHarness,
    after,
    always,
    open_webhook_harness,
    receiving,
    thanks,
)
from tests.support import eventually


async def test_a_failing_delivery_delays_its_own_batch_and_no_other(
    harness: WebhookHarness,
) -> None:
    batch, other = await harness.batch(), await harness.batch()
    refusing = asyncio.Event()

    async def refuse_one(request: Request) -> web.Response:
        if request.json["data"]["upload"]["path"] != "first":
            return web.Response()
        await refusing.wait()
        return web.Response(status=500, text="no room")

    async with receiving(refuse_one) as receiver:
        hook = await harness.deliver_to(receiver.url, "upload.completed")
        first = await harness.upload(batch, "first")
        second = await harness.upload(batch, "second")
        apart = await harness.upload(other, "apart")
        await harness.ended(hook, apart)  # while the first has no answer yet
        refusing.set()
        failed = await harness.tried(hook, first, 1)

        assert failed.last is not None
        assert (failed.last.status, failed.last.excerpt) == (500, "no room")
        assert failed.last.error == "it answered 500"
        assert failed.next_at is not None
        assert (await harness.webhooks.delivery(hook.id, second)).attempts == 0
        standing = (await harness.webhooks.load_health([hook.id]))[hook.id]
        assert (standing.pending, standing.last_error) == (2, "it answered 500")

        receiver.answer = thanks
        harness.skip(DELAYS[0])
        await harness.ended(hook, second)

        assert receiver.positions[-2:] == [first, second]
        standing = (await harness.webhooks.load_health([hook.id]))[hook.id]
        assert (standing.pending, standing.failing_since) == (0, None)


@pytest.mark.options(answer=always(503))
async def test_a_delivery_is_tried_for_three_days_and_then_given_up_and_the_next_goes_on(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    batch = await harness.batch()
    first, second = await harness.upload(batch, "a"), await harness.upload(batch, "b")
    began = harness.clock()

    for number, delay in enumerate(DELAYS, start=1):
        tried = await harness.tried(hook, first, number)
        assert tried.next_at is not None
        assert tried.last is not None
        waits = (tried.next_at - tried.last.at).total_seconds()
        assert waits == pytest.approx(delay, abs=2.0)
        harness.skip(delay)
    given_up = await harness.ended(hook, first)
    await harness.tried(hook, second, 1)

    assert (given_up.state, given_up.attempts) == ("failed", len(DELAYS) + 1)
    assert 3 * DAY < (harness.clock() - began).total_seconds() < 4 * DAY
    assert len({request.id for request in receiver.requests}) == 2
    assert len({request.body for request in receiver.requests}) == 2


@pytest.mark.options(answer=always(429, **{"Retry-After": "3600"}))
async def test_a_receiver_is_granted_the_time_it_asks_for(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    position = await harness.complete(await harness.batch())

    tried = await harness.tried(hook, position, 1)

    assert tried.next_at is not None
    assert tried.last is not None
    assert (tried.next_at - tried.last.at).total_seconds() == pytest.approx(3600, abs=2.0)


@pytest.mark.options(answer=always(410))
async def test_a_410_disables_the_webhook_and_keeps_pending_deliveries_until_it_is_enabled(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    batch = await harness.batch()
    first = await harness.upload(batch, "a")
    disabled = await harness.disabled(hook)
    later = await harness.complete(await harness.batch())
    await harness.followed(later)
    harness.skip(DAY)

    assert (disabled.reason, disabled.by) == ("it answered 410 Gone", "orchestrator")
    (webhook,) = (await harness.webhooks.all(owner="acme")).items
    assert (webhook.enabled, webhook.reason) == (False, "it answered 410 Gone")
    assert receiver.positions == [first]
    assert (await harness.webhooks.load_health([hook.id]))[hook.id].pending == 2

    receiver.answer = thanks
    await harness.enable(hook)
    await harness.ended(hook, first)
    await harness.ended(hook, later)

    assert sorted(receiver.positions) == [first, first, later]


@pytest.mark.options(answer=always(500))
async def test_days_of_nothing_but_failures_disable_with_the_last_reason(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    position = await harness.complete(await harness.batch())
    await harness.tried(hook, position, 1)
    harness.skip(4.9 * DAY)
    await harness.tried(hook, position, 2)
    assert (await harness.log.webhook(hook.id)).enabled
    harness.skip(0.2 * DAY)
    disabled = await harness.disabled(hook)

    assert disabled.reason.startswith("nothing but failures since 20")
    assert disabled.reason.endswith(": it answered 500")
    assert len(receiver.requests) == 3


@pytest.mark.options(answer=always(500))
async def test_one_success_ends_the_count_of_days(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    first = await harness.complete(await harness.batch())
    await harness.tried(hook, first, 1)
    receiver.answer = thanks
    harness.skip(4 * DAY)
    await harness.ended(hook, first)
    receiver.answer = always(500)
    second = await harness.complete(await harness.batch())
    await harness.tried(hook, second, 1)
    harness.skip(4 * DAY)
    await harness.tried(hook, second, 2)

    since = (await harness.webhooks.load_health([hook.id]))[hook.id].failing_since
    assert since is not None
    assert harness.clock() - since < timedelta(days=5)
    assert (await harness.log.webhook(hook.id)).enabled


async def test_a_silent_receiver_has_few_requests_and_delays_no_other(
    harness: WebhookHarness,
) -> None:
    answering = asyncio.Event()
    async with receiving(after(answering)) as stuck, receiving() as quick:
        slow, fast = await harness.hook(stuck.url), await harness.hook(quick.url)
        await harness.open()
        positions = [await harness.complete(await harness.batch()) for _ in range(30)]
        for position in positions:
            await harness.ended(fast, position)

        assert sorted(quick.positions) == positions
        assert stuck.most_at_once == MAX_LANES_PER_WEBHOOK

        answering.set()
        for position in positions:
            await harness.ended(slow, position)


async def test_a_single_failure_is_tried_again_by_itself_and_takes_no_lanes_away(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    answering = asyncio.Event()
    refused: list[int] = []

    async def refuse_the_first(request: Request) -> web.Response:
        if not refused:
            refused.append(request.position)
            return web.Response(status=500)
        await answering.wait()
        return web.Response()

    receiver.answer = refuse_the_first
    hook = await harness.deliver_to(receiver.url)
    positions = [await harness.complete(await harness.batch()) for _ in range(20)]
    await eventually(lambda: receiver.at_once == MAX_LANES_PER_WEBHOOK)
    answering.set()
    for position in positions:
        await harness.ended(hook, position)

    # The clock was not advanced.
    assert receiver.positions.count(refused[0]) == 2
    assert sorted(set(receiver.positions)) == positions


async def test_a_slow_receiver_is_given_up_for_now(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    harness.timeout = 0.2
    never = asyncio.Event()
    receiver.answer = after(never)
    hook = await harness.deliver_to(receiver.url)
    tried = await harness.tried(hook, await harness.complete(await harness.batch()), 1)
    never.set()

    assert tried.last is not None
    assert (tried.last.status, tried.last.error) == (None, "it did not answer within 0.2 s")


async def test_a_refused_connection_is_a_failed_delivery(harness: WebhookHarness) -> None:
    hook = await harness.deliver_to("http://127.0.0.1:1/")
    tried = await harness.tried(hook, await harness.complete(await harness.batch()), 1)

    assert tried.last is not None
    assert tried.last.error.startswith("it cannot be reached: ")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (always(302, Location="http://169.254.169.254/"), "it answered 302: redirects are not"),
        (always(400, text="x" * 100_000), "it answered 400"),
        (always(500, text="\0"), "it answered 500"),
    ],
)
async def test_an_answer_is_not_followed_nor_kept_at_length(
    database_url: str, answer: object, error: str
) -> None:
    async with (
        open_webhook_harness(database_url) as harness,
        receiving(answer) as receiver,  # type: ignore[arg-type]
    ):
        hook = await harness.deliver_to(receiver.url)
        tried = await harness.tried(hook, await harness.complete(await harness.batch()), 1)

        assert tried.last is not None
        assert tried.last.error.startswith(error)
        assert len(tried.last.excerpt) <= 500
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "①②⑦.⓪.⓪.①"])
async def test_nothing_leaves_for_a_private_address(
    harness: WebhookHarness, receiver: Receiver, host: str
) -> None:
    hook = await harness.hook(receiver.url.replace("127.0.0.1", host))
    harness.follow()
    await harness.deliver(private=False)
    tried = await harness.tried(hook, await harness.complete(await harness.batch()), 1)

    assert tried.last is not None
    assert "`allow_private_addresses` is off" in tried.last.error
    assert receiver.requests == []


async def test_a_new_address_is_tried_at_once(harness: WebhookHarness) -> None:
    wait = {"Retry-After": "3600"}
    async with receiving(always(404, **wait)) as wrong, receiving() as right:
        hook = await harness.deliver_to(wrong.url)
        position = await harness.complete(await harness.batch())
        await harness.tried(hook, position, 1)
        await harness.change(hook, right.url)
        await harness.ended(hook, position)

        assert (wrong.positions, right.positions) == ([position], [position])


async def test_a_delivery_whose_payload_cannot_be_built_fails_alone_and_stays_visible(
    harness: WebhookHarness, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(*_: object) -> bytes:
        raise ValueError("position 7: no event has the topic 'x'")

    hook = await harness.hook(receiver.url)
    monkeypatch.setattr(harness.teller, "body", unreadable)
    await harness.open()
    tried = await harness.tried(hook, await harness.complete(await harness.batch()), 1)

    assert tried.last is not None
    reason = "position 7: no event has the topic 'x'"
    assert tried.last.error == f"the payload cannot be built: {reason}"
    assert receiver.requests == []


async def test_a_webhook_disabled_during_a_round_receives_no_further_request(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.hook(receiver.url)
    harness.follow()
    batch = await harness.batch()
    first, second = await harness.upload(batch, "a"), await harness.upload(batch, "b")
    await harness.followed(second)

    async def disable(_: Request) -> web.Response:
        await harness.disable(hook)
        return web.Response()

    receiver.answer = disable
    await harness.deliver()
    await harness.ended(hook, first)
    tested = await harness.test(hook)  # by the same deliverer, so it has looked again

    assert tested.state == "delivered"
    assert receiver.positions == [first, tested.position]
    assert (await harness.webhooks.delivery(hook.id, second)).attempts == 0
