from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.errors import InvalidState, ValidationFailed
from domain.event import topic_of
from domain.webhook.aggregate import MAX_SECRETS, ROTATION, SigningSecret, Webhook
from domain.webhook.events import (
    DELIVERED_TOPICS,
    WebhookAdded,
    WebhookChanged,
    WebhookDisabled,
    WebhookEnabled,
    WebhookEvent,
    WebhookFilter,
    WebhookRemoved,
    WebhookSecretRotated,
    WebhookTestRequested,
    validate_filter,
)
from tests.builders import ALICE, NOON, later

HOOK = UUID(int=7)
FIRST, SECOND, THIRD = UUID(int=1), UUID(int=2), UUID(int=3)
NOW = {"at": NOON, "by": ALICE}


def subscription(**more: Any) -> WebhookFilter:
    known: dict[str, Any] = {"url": "https://example.com/hook", "events": ("batch.completed",)}
    return WebhookFilter(**{**known, **more})


def added(**more: Any) -> WebhookAdded:
    return WebhookAdded(**NOW, owner="acme", subscription=subscription(**more), secret=FIRST)


def given(*history: WebhookEvent) -> Webhook:
    webhook = Webhook.begin(HOOK, added())
    for event in history:
        webhook = webhook.evolve(event)
    return webhook


DISABLED = WebhookDisabled(**NOW, reason="it answered 410 Gone")
REMOVED = WebhookRemoved(**NOW)


def test_a_webhook_is_added_with_the_id_of_its_secret() -> None:
    events = Webhook.add("acme", subscription(), FIRST, at=NOON, by=ALICE)

    assert events == (added(),)
    assert Webhook.begin(HOOK, events[0]).active_secrets(NOON) == (SigningSecret(FIRST),)


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://user:word@example.com"}, "url"),
        ({"url": "https://example.com/#part"}, "url"),
        ({"url": "https://example.com:99999/"}, "url"),
        ({"url": "https://[::1"}, "url"),
        ({"url": "https://example.com/a b"}, "url"),
        ({"url": "https://example.com/" + "a" * 2000}, "url"),
        ({"events": ()}, "events"),
        ({"events": ("batch.completed", "batch.progressed")}, "events/1"),
        ({"events": ("batch.completed", "batch.completed")}, "events/1"),
        ({"label": "a\nb"}, "label"),
        ({"description": "x" * 201}, "description"),
    ],
)
def test_a_subscription_that_breaks_a_rule_is_refused_by_its_field(
    broken: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationFailed) as refused:
        Webhook.add("acme", subscription(**broken), FIRST, at=NOON, by=ALICE)

    assert [fault.field for fault in refused.value.faults] == [field]


def test_every_deliverable_event_can_be_chosen_at_once() -> None:
    assert (
        list(
            validate_filter(
                subscription(events=DELIVERED_TOPICS, label="", url="http://a:8080/x?y=1")
            )
        )
        == []
    )


@pytest.mark.parametrize(
    ("chosen", "label", "named", "delivered"),
    [
        ({}, "", False, True),
        ({"events": ("upload.failed",)}, "", False, False),
        ({"label": "photos"}, "photos", False, True),
        ({"label": "photos"}, "films", False, False),
        ({"on_request": True}, "", False, False),
        ({"on_request": True}, "", True, True),
        ({"on_request": True, "label": "photos"}, "films", True, False),
    ],
)
def test_a_subscription_chooses_by_event_label_and_request(
    chosen: dict[str, Any], label: str, named: bool, delivered: bool
) -> None:
    assert subscription(**chosen).matches("batch.completed", label, named=named) is delivered


def test_a_change_that_changes_nothing_is_not_recorded() -> None:
    other = subscription(events=("upload.failed",))

    assert given().change(subscription(), **NOW) == ()
    assert given().change(other, **NOW) == (WebhookChanged(**NOW, subscription=other),)


def test_after_a_rotation_the_earlier_secret_signs_for_a_day() -> None:
    (rotated,) = given().rotate(SECOND, **NOW)
    webhook = given(rotated)

    assert rotated == WebhookSecretRotated(**NOW, secret=SECOND, earlier_until=NOON + ROTATION)
    just_before = NOON + ROTATION - timedelta(seconds=1)
    assert [secret.id for secret in webhook.active_secrets(just_before)] == [SECOND, FIRST]
    assert [secret.id for secret in webhook.active_secrets(NOON + ROTATION)] == [SECOND]


def test_a_second_rotation_does_not_prolong_the_first_secret() -> None:
    webhook = given()
    for secret, at in ((SECOND, NOON), (THIRD, later(3600))):
        (rotated,) = webhook.rotate(secret, at=at, by=ALICE)
        webhook = webhook.evolve(rotated)

    assert webhook.secrets == (
        SigningSecret(THIRD),
        SigningSecret(SECOND, later(3600) + ROTATION),
        SigningSecret(FIRST, NOON + ROTATION),
    )


def test_no_more_than_a_few_secrets_sign_at_once() -> None:
    webhook = given()
    for number in range(1, MAX_SECRETS):
        webhook = webhook.evolve(webhook.rotate(UUID(int=100 + number), **NOW)[0])

    with pytest.raises(InvalidState, match="wait until one of them expires"):
        webhook.rotate(UUID(int=200), **NOW)
    assert webhook.rotate(UUID(int=200), at=NOON + ROTATION, by=ALICE)


def test_disabling_keeps_the_reason_until_it_is_enabled() -> None:
    webhook = given(DISABLED)

    assert (webhook.enabled, webhook.reason) == (False, "it answered 410 Gone")
    assert webhook.disable("again", **NOW) == ()
    assert webhook.enable(**NOW) == (WebhookEnabled(**NOW),)
    enabled = webhook.evolve(WebhookEnabled(**NOW))
    assert (enabled.enabled, enabled.reason) == (True, "")
    assert enabled.enable(**NOW) == ()


def test_the_actor_of_the_last_change_is_known_and_a_test_is_no_change() -> None:
    by_bob = WebhookDisabled(at=later(5), by="key:bob", reason="too much")
    webhook = given(by_bob, WebhookTestRequested(at=later(9), by="key:eve"))

    assert (webhook.added_by, webhook.changed_by, webhook.changed_at) == (
        ALICE,
        "key:bob",
        later(5),
    )
    assert webhook.version == 3


def test_nothing_can_be_done_to_a_webhook_that_was_removed() -> None:
    webhook = given(REMOVED)

    assert webhook.remove(**NOW) == ()
    for refused in (
        lambda: webhook.change(subscription(), **NOW),
        lambda: webhook.rotate(SECOND, **NOW),
        lambda: webhook.request_test(**NOW),
        lambda: webhook.enable(**NOW),
        lambda: webhook.disable("", **NOW),
    ):
        with pytest.raises(InvalidState, match="was removed"):
            refused()


def test_a_history_begins_once_and_with_its_beginning() -> None:
    with pytest.raises(InvalidState):
        Webhook.begin(HOOK, DISABLED)
    with pytest.raises(InvalidState):
        given().evolve(added())


def test_deliverable_topics_leave_out_progress_and_tests() -> None:
    assert len(DELIVERED_TOPICS) == len(set(DELIVERED_TOPICS))
    assert not {topic for topic in DELIVERED_TOPICS if "progress" in topic}
    assert topic_of(WebhookTestRequested) not in DELIVERED_TOPICS
