"""Deliveries: which events go to which webhook, and the signed requests."""

from __future__ import annotations

import json

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from application.webhooks.notifications import WebhookIndex
from domain.batch.events import BatchRenamed, BatchReopened
from domain.event import topic_of
from domain.ids import partial_upload_id_for, upload_id_for
from domain.upload.events import RetryRequested, UploadCompleted
from infrastructure.audit.derived import check_deliveries
from infrastructure.audit.verifier import Findings
from infrastructure.event_store.codec import CODEC
from infrastructure.event_store.reader import read_log
from infrastructure.outbound import new_secret
from infrastructure.read_model.projector import catch_up
from tests.builders import ALICE, NOON, registered
from tests.infrastructure.webhooks.harness import (
    Receiver,
    WebhookHarness,
    open_webhook_harness,
    receiving,
)
from tests.support import eventually


async def test_final_events_are_delivered_in_order_by_signed_requests(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    batch = await harness.batch(label="photos", metadata={"album": "2026"})
    positions = [await harness.upload(batch, f"{n}.jpg") for n in range(3)]
    positions.append(await harness.complete(batch))

    await harness.ended(hook, positions[-1])

    assert receiver.positions == positions
    delivered = [request.verify(hook.secret) for request in receiver.requests]
    assert [message["type"] for message in delivered] == ["upload.completed"] * 3 + [
        "batch.completed"
    ]
    assert len({request.id for request in receiver.requests}) == 4
    with pytest.raises(WebhookVerificationError):
        receiver.requests[0].verify(new_secret())


async def test_a_message_shows_its_subject_as_of_the_event(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.hook(receiver.url)
    batch = await harness.batch(label="photos")
    await harness.upload(batch, "a.jpg")
    position = await harness.complete(batch)
    # Both continue before any delivery.
    upload = upload_id_for(batch, "a.jpg", b"")
    await harness.record(upload, RetryRequested(at=NOON, by=ALICE), after=None)
    await harness.record(batch, BatchReopened(at=NOON, by=ALICE, reason="again"), after=None)
    await harness.open()
    await harness.ended(hook, position)

    first, second = (request.json for request in receiver.requests)
    assert set(first) == set(second) == {"type", "timestamp", "data"}
    delivered = first["data"]["upload"]
    assert (delivered["path"], delivered["state"], delivered["size"]) == ("a.jpg", "completed", 100)
    assert (delivered["batch"], delivered["position"]) == (str(batch), first["data"]["position"])
    assert "blob" not in json.dumps(first)
    links = first["data"]["links"]
    assert links["upload"] == f"https://up.example/v1/uploads/{upload}"
    assert links["report"] == f"https://up.example/v1/batches/{batch}/report.json"

    shown, event = second["data"]["batch"], second["data"]["event"]
    assert (shown["outcome"], shown["counts"]) == ("succeeded", {"completed": 1})
    assert (shown["label"], shown["position"]) == ("photos", position)
    assert (event["outcome"], event["duration"]) == ("succeeded", 1.5)
    assert event["by"] == "orchestrator"


async def test_a_body_is_the_same_from_the_read_model_and_from_the_log(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.hook(receiver.url)
    harness.follow()
    batch = await harness.batch()
    await harness.upload(batch, "a.jpg")
    await harness.followed(await harness.complete(batch))
    deliveries = await harness.webhooks.deliveries(hook.id)

    folded = [await harness.teller.body(delivery) for delivery in deliveries]
    await catch_up(harness.url, harness.log)
    read = [await harness.teller.body(delivery) for delivery in deliveries]

    assert [json.loads(body) for body in folded] == [json.loads(body) for body in read]
    assert len(folded) == 2


async def test_a_webhook_receives_its_chosen_events_of_its_owner_from_its_creation_on(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    await harness.complete(await harness.batch())  # before there was a webhook
    everything = await harness.hook(f"{receiver.url}/all")
    await harness.hook(f"{receiver.url}/batches", "batch.started", "batch.completed")
    await harness.hook(f"{receiver.url}/photos", label="photos")
    await harness.hook(f"{receiver.url}/asked", on_request=True)
    await harness.hook(f"{receiver.url}/others", owner="globex")
    await harness.open()
    plain = await harness.batch(label="films")
    asked = await harness.batch(label="photos", notify=f"{receiver.url}/asked")
    await harness.upload(plain, "a")
    await harness.complete(plain)
    last = await harness.complete(asked)

    await harness.ended(everything, last)

    async def delivered() -> bool:
        return await harness.fetch("SELECT FROM webhooks.deliveries WHERE state = 'pending'") == []

    await eventually(delivered)
    heard: dict[str, list[str]] = {}
    for request in receiver.requests:
        name = request.path.removeprefix("/hook/")
        heard.setdefault(name, []).append(request.json["type"])
    assert {name: sorted(types) for name, types in heard.items()} == {
        "all": ["batch.completed", "batch.completed", "upload.completed"],
        "batches": ["batch.completed"] * 2 + ["batch.started"] * 2,
        "photos": ["batch.completed"],
        "asked": ["batch.completed"],
    }


async def test_a_label_filter_uses_the_new_label_of_a_renamed_batch(database_url: str) -> None:
    types = ("batch.renamed", "batch.completed", "upload.completed")
    async with open_webhook_harness(database_url) as harness, receiving() as receiver:
        old = await harness.hook(f"{receiver.url}/old", *types, label="photos")
        new = await harness.deliver_to(f"{receiver.url}/new", *types, label="films")
        batch, other = await harness.batch(label="photos"), await harness.batch(label="photos")
        before = await harness.upload(batch, "a")
        await harness.ended(old, before)
        rename = BatchRenamed(at=NOON, by=ALICE, label="films")
        renamed = await harness.record(batch, rename, after=None)
        upload = await harness.upload(batch, "b")
        done, other_done = await harness.complete(batch), await harness.complete(other)
        await harness.ended(new, done)
        await harness.ended(old, other_done)

        rows = await harness.fetch("SELECT webhook, position FROM webhooks.deliveries ORDER BY 2")
        head = await harness.log.head()
        async with harness.pool.connection() as connection:
            changes = await read_log(connection, 0, 100, WebhookIndex().topics())
            findings = Findings()
            await check_deliveries(
                connection, CODEC, findings, changes, through=head, retention=86400.0
            )

    assert rows == [
        (old.id, before),
        (new.id, renamed),
        (new.id, upload),
        (new.id, done),
        (old.id, other_done),
    ]
    assert findings.found == []


async def test_partial_uploads_are_not_delivered(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)
    batch = await harness.batch()
    part = partial_upload_id_for(batch)
    done = UploadCompleted(at=NOON, by=ALICE)
    await harness.record(part, registered(batch=batch), done)
    last = await harness.complete(batch)

    await harness.ended(hook, last)

    assert receiver.positions == [last]


async def test_a_test_delivery_is_sent_once_also_while_the_webhook_is_disabled(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    hook = await harness.deliver_to(receiver.url)

    delivery = await harness.test(hook)

    assert delivery.last is not None
    assert (delivery.state, delivery.last.status) == ("delivered", 204)
    (request,) = receiver.requests
    message = request.verify(hook.secret)
    assert message["type"] == "webhook.test_requested"
    assert message["data"]["webhook"] == str(hook.id)
    assert message["data"]["event"]["by"] == ALICE


async def test_the_secret_is_in_no_event_and_no_log_line(harness: WebhookHarness) -> None:
    hook = await harness.hook("https://example.com/")
    secret = await harness.webhooks.make_secret(hook.id)
    (added,) = await harness.events(hook)

    assert topic_of(added.event) == "webhook.added"
    bare = hook.secret.removeprefix("whsec_").encode()
    found = await harness.fetch("SELECT state FROM stored_events")
    assert not [state for (state,) in found if bare in state]
    assert secret.text not in repr(secret)
