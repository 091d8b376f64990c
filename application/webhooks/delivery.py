"""Attempts of webhook deliveries, and the schedule of their retries.

Source of the schedule: the Standard Webhooks specification, version 1, "Deliverability and
reliability", extended to three days. It begins with two tries within two
seconds: most failures pass, and the later deliveries of a batch wait for the first one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial

import msgspec

from application.commands import WebhookCommand
from application.errors import NotFound, Unavailable
from application.handlers.execute import CommandContext, execute
from application.ports.event_log import EventLog
from application.ports.webhooks import (
    DeadLettered,
    DeliveryAttempt,
    DeliveryError,
    DeliverySucceeded,
    HttpReply,
    LeasedDelivery,
    Outbox,
    RetryScheduled,
    Sender,
    Verdict,
)
from application.webhooks.notifications import PayloadBuilder
from domain.errors import InvalidState
from domain.webhook.aggregate import Webhook

MINUTE, HOUR = 60.0, 3600.0

DELAYS = (
    *(0.25, 1.0, 5.0, 30.0, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE),
    *(HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR),
    *(12 * HOUR,) * 5,
)
"""Seconds after the first, second, third ... failure; 3 days and 4 hours in all."""

JITTER = 0.2  # relative; spreads the retries of many deliveries
MAX_RETRY_AFTER = 24 * HOUR  # seconds


def next_attempt_at(
    failures: int, *, at: datetime, random: float, retry_after: str | None = None
) -> datetime | None:
    """Return the time of the next attempt after `failures` failures (from 1), or None.

    `random` lies in [0, 1). A Retry-After header is respected if it is later.
    """
    if failures > len(DELAYS):
        return None
    delay = DELAYS[failures - 1] * (1 + JITTER * (2 * random - 1))
    return at + timedelta(seconds=max(delay, parse_retry_after(retry_after, at)))


def parse_retry_after(retry_after: str | None, at: datetime) -> float:
    """Return the bounded seconds of a Retry-After header; 0 if absent or invalid.

    Source of the rule: RFC 9110 section 10.2.3: a number of seconds, or a date.
    """
    text = (retry_after or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER) if len(text) < 10 else MAX_RETRY_AFTER
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    delay = (moment.replace(tzinfo=moment.tzinfo or UTC) - at).total_seconds()
    return min(max(0.0, delay), MAX_RETRY_AFTER)


BY = "orchestrator"
MAX_LANE_BURST = 20  # deliveries of a lane in a row, before other lanes continue
GONE = 410


class AttemptResult(msgspec.Struct, frozen=True):
    """An attempt and its response, None if there was none."""

    attempt: DeliveryAttempt
    reply: HttpReply | None

    @property
    def succeeded(self) -> bool:
        return self.reply is not None and 200 <= self.reply.status < 300

    @property
    def is_gone(self) -> bool:
        """True if the receiver responded 410 Gone."""
        return self.reply is not None and self.reply.status == GONE


class Deliverer:
    """Attempts leased deliveries.

    A webhook that has only failed for `disable_after` seconds is disabled. `now` gives
    the time in UTC, `random` numbers in [0, 1).
    """

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        payloads: PayloadBuilder,
        log: EventLog,
        *,
        disable_after: float,
        now: Callable[[], datetime],
        random: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._payloads = payloads
        self._log = log
        self._disable_after = timedelta(seconds=disable_after)
        self._now = now
        self._random = random

    async def drain_lane(self, due: LeasedDelivery) -> datetime | None:
        """Attempt this delivery, and the next ones of its lane while they succeed.

        Returns the time of the next attempt of a failed one, or None. Raises Unavailable.
        """
        current: LeasedDelivery | None = due
        left = MAX_LANE_BURST
        while current is not None and left:
            left -= 1
            current, again = await self._deliver(current, keep_lane=left > 0)
            if again is not None:
                return again
        return None

    async def _deliver(
        self, due: LeasedDelivery, *, keep_lane: bool
    ) -> tuple[LeasedDelivery | None, datetime | None]:
        """Return the next delivery of the lane, and the time of this one's next attempt."""
        result = await self._attempt(due)
        at = self._now()
        verdict = self._verdict(due, result, at)
        after = await self._outbox.complete(
            due, result.attempt, verdict, at=at, keep_lane=keep_lane
        )
        if after is None:
            return None, None
        if reason := self._disable_reason(result, after.failing_since, at):
            await self._disable(due, reason, at)
            return None, None
        return after.next, verdict.at if isinstance(verdict, RetryScheduled) else None

    async def _attempt(self, due: LeasedDelivery) -> AttemptResult:
        """Attempt one delivery; every error is a failure of the attempt. Raises Unavailable."""
        clock = asyncio.get_running_loop().time
        at, began = self._now(), clock()
        delivery = due.delivery
        try:
            body = await self._payloads.body(delivery)
        except Unavailable:
            raise
        except Exception as error:  # recorded with the delivery, where operators see it
            reason = str(error) or type(error).__name__
            return AttemptResult(
                DeliveryAttempt(
                    at=at, duration=0.0, error=f"the payload cannot be built: {reason}"
                ),
                None,
            )
        secrets = [due.secrets[secret.id] for secret in due.webhook.active_secrets(at)]
        url = due.webhook.subscription.url
        try:
            reply = await self._sender.send(url, secrets, delivery.id, at, body)
        except DeliveryError as error:
            took = round(clock() - began, 3)
            return AttemptResult(DeliveryAttempt(at=at, duration=took, error=str(error)), None)
        attempt = DeliveryAttempt(
            at=at,
            duration=round(clock() - began, 3),
            status=reply.status,
            error=_status_error(reply.status),
            excerpt=reply.excerpt,
        )
        return AttemptResult(attempt, reply)

    def _verdict(self, due: LeasedDelivery, result: AttemptResult, at: datetime) -> Verdict:
        if result.succeeded:
            return DeliverySucceeded()
        if due.delivery.is_test:  # the user sees the result and repeats the test
            return DeadLettered()
        again = next_attempt_at(
            due.delivery.failures + 1,
            at=at,
            random=self._random(),
            retry_after=result.reply.retry_after if result.reply else None,
        )
        return DeadLettered() if again is None else RetryScheduled(again)

    def _disable_reason(
        self, result: AttemptResult, failing_since: datetime | None, at: datetime
    ) -> str:
        """Return the reason to disable the webhook, or an empty text."""
        if result.is_gone:
            return "it answered 410 Gone"
        if failing_since is None or at - failing_since < self._disable_after:
            return ""
        return (
            f"nothing but failures since {failing_since:%Y-%m-%d %H:%M} UTC: {result.attempt.error}"
        )

    async def _disable(self, due: LeasedDelivery, reason: str, at: datetime) -> None:
        command = WebhookCommand(due.webhook.id, partial(Webhook.disable, reason=reason))
        try:
            await execute(self._log, command, CommandContext(by=BY, at=at))
        except (NotFound, InvalidState):
            return  # it was removed meanwhile


def _status_error(status: int) -> str:
    """Return the error of a response with this status; empty for a successful one."""
    if 200 <= status < 300:
        return ""
    moved = ": redirects are not followed" if 300 <= status < 400 else ""
    return f"it answered {status}{moved}"
