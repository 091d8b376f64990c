"""Matching, payloads and retries of webhooks, before anything is stored or sent."""

from __future__ import annotations

from random import Random
from typing import Any
from uuid import UUID

import pytest

from application.append import RecordedEvent
from application.ports.webhooks import StreamBatch
from application.webhooks.delivery import (
    DELAYS,
    JITTER,
    MAX_RETRY_AFTER,
    next_attempt_at,
    parse_retry_after,
)
from application.webhooks.notifications import (
    WebhookIndex,
    plan_test_delivery,
    split_at_webhook_change,
)
from domain.batch.events import BatchCompleted, BatchRenamed, BatchReopened
from domain.batch.state import Outcome
from domain.event import Event
from domain.webhook.events import (
    WebhookAdded,
    WebhookChanged,
    WebhookFilter,
    WebhookRemoved,
    WebhookTestRequested,
)
from tests.builders import ALICE, BATCH, NOON

HOOK, SECRET = UUID(int=7), UUID(int=1)
NOW = {"at": NOON, "by": ALICE}
DONE = BatchCompleted(**NOW, outcome=Outcome.SUCCEEDED, counts={}, duration=1.0)
AGAIN = BatchReopened(**NOW, reason="again")
ORIGINS = {BATCH: StreamBatch(BATCH, "acme", "photos", None)}


def subscription(*events: str, **more: Any) -> WebhookFilter:
    return WebhookFilter(url="https://a.example/", events=events or ("batch.completed",), **more)


def at(position: int, event: Event, stream: UUID = BATCH) -> RecordedEvent:
    return RecordedEvent(stream, position, position, event)  # type: ignore[arg-type]


def added(*events: str, owner: str = "acme", **more: Any) -> WebhookAdded:
    chosen = subscription(*events, **more)
    return WebhookAdded(**NOW, owner=owner, subscription=chosen, secret=SECRET)


def roster(*changes: Event) -> WebhookIndex:
    found = WebhookIndex()
    for position, change in enumerate(changes, start=1):
        found.apply(at(position, change, HOOK))
    return found


def matched(found: WebhookIndex, *events: RecordedEvent) -> list[int]:
    return [telling.position for telling in found.match(events, ORIGINS)]


def test_a_delivery_is_ordered_with_its_batch() -> None:
    (telling,) = roster(added()).match([at(9, DONE)], ORIGINS)

    assert (telling.webhook, telling.lane, telling.stream) == (HOOK, BATCH, BATCH)
    assert (telling.position, telling.type) == (9, "batch.completed")


def test_events_not_chosen_or_of_other_owners_are_not_delivered() -> None:
    assert matched(roster(added()), at(9, AGAIN)) == []
    assert matched(roster(added(owner="globex")), at(9, DONE)) == []
    assert matched(roster(added(label="films")), at(9, DONE)) == []
    assert matched(roster(added()), at(9, DONE, UUID(int=99))) == []


def test_a_label_filter_uses_the_label_as_of_each_event() -> None:
    origins = {BATCH: StreamBatch(BATCH, "acme", "photos", None, ((4, "films"), (7, "songs")))}
    rename = BatchRenamed(**NOW, label="films")
    events = [at(3, DONE), at(4, rename), at(6, DONE), at(7, rename), at(9, DONE)]

    def positions(label: str) -> list[int]:
        index = roster(added("batch.completed", "batch.renamed", label=label))
        return [delivery.position for delivery in index.match(events, origins)]

    assert (positions("photos"), positions("films"), positions("songs")) == ([3], [4, 6], [7, 9])


def test_changes_of_a_webhook_take_effect_at_their_position() -> None:
    changed = WebhookChanged(**NOW, subscription=subscription("batch.reopened"))

    assert matched(roster(added(), changed), at(8, DONE), at(9, AGAIN)) == [9]
    assert matched(roster(added(), WebhookRemoved(**NOW)), at(9, DONE)) == []


def test_only_events_chosen_by_a_webhook_are_read_from_the_log() -> None:
    nobody = set(WebhookIndex().topics())

    assert all(topic.startswith("webhook.") for topic in nobody)
    assert set(roster(added("upload.failed")).topics()) - nobody == {"upload.failed"}
    assert set(roster(added(), WebhookRemoved(**NOW)).topics()) == nobody


def test_a_change_ends_what_is_read_at_once() -> None:
    change = at(3, added(), HOOK)

    events, found = split_at_webhook_change([at(2, DONE), change, at(4, DONE)])

    assert ([event.position for event in events], found) == ([2], change)
    assert split_at_webhook_change([at(2, DONE)]) == ([at(2, DONE)], None)


def test_a_test_goes_to_its_own_webhook_in_an_order_of_its_own() -> None:
    telling = plan_test_delivery(at(5, WebhookTestRequested(**NOW), HOOK))

    assert telling is not None
    assert (telling.webhook, telling.lane) == (HOOK, HOOK)
    assert plan_test_delivery(at(5, added(), HOOK)) is None


@pytest.mark.parametrize("failures", range(1, len(DELAYS) + 1))
def test_each_delay_is_spread_by_a_fifth(failures: int) -> None:
    delay = DELAYS[failures - 1]
    waits = []
    for random in (0.0, 0.5, 1.0):
        again = next_attempt_at(failures, at=NOON, random=random)
        assert again is not None
        waits.append((again - NOON).total_seconds())

    assert waits == pytest.approx([delay * (1 - JITTER), delay, delay * (1 + JITTER)])


def test_deliveries_are_retried_for_about_three_days() -> None:
    assert sum(DELAYS[:2]) * (1 + JITTER) < 2.0  # most failures pass
    assert DELAYS[-1] == 12 * 3600.0
    assert list(DELAYS) == sorted(DELAYS)
    assert 3.0 < sum(DELAYS) / 86400 < 3.5
    assert next_attempt_at(len(DELAYS), at=NOON, random=0.5)
    assert next_attempt_at(len(DELAYS) + 1, at=NOON, random=0.5) is None


def test_one_failure_in_sixteen_hardly_delays_the_later_deliveries_of_a_batch() -> None:
    """On virtual time: a batch's events come two a second, a request takes 30 ms, 6 % fail."""
    chance = Random(8)
    delays: list[float] = []
    for _ in range(50):
        event, free = 0.0, 0.0
        for _ in range(200):
            event += chance.expovariate(2.0)
            free = max(event, free) + 0.03
            failures = 0
            while chance.random() < 0.06:
                failures += 1
                again = next_attempt_at(failures, at=NOON, random=chance.random())
                assert again is not None
                free += (again - NOON).total_seconds() + 0.03
            delays.append(free - event)

    delays.sort()
    assert delays[len(delays) // 2] < 0.1
    assert delays[len(delays) * 99 // 100] < 3.0


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        (None, 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("999999", MAX_RETRY_AFTER),
        ("9" * 400, MAX_RETRY_AFTER),
        ("Thu, 01 Jan 2026 13:00:00 GMT", 3600.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2099 11:00:00 GMT", MAX_RETRY_AFTER),
    ],
)
def test_retry_after_is_understood_and_bounded(header: str | None, wish: float) -> None:
    assert parse_retry_after(header, NOON) == wish


def test_a_wish_for_sooner_is_not_granted() -> None:
    again = next_attempt_at(6, at=NOON, random=0.5, retry_after="1")

    assert again is not None
    assert (again - NOON).total_seconds() == DELAYS[5]
