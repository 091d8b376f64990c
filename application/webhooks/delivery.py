"""How soon a delivery that failed is tried again: at once at first, over days in the end.

Source of the rule: the Standard Webhooks specification, version 1, "Deliverability and
reliability", whose schedule this is, drawn out to three days. It begins with two tries within two
seconds: most failures pass, and the later deliveries of a batch wait for the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import perf_counter

import msgspec

from application.commands import DisableWebhook
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
    RetryAt,
    Sender,
    Verdict,
)
from application.webhooks.notifications import PayloadBuilder
from domain.errors import InvalidState

MINUTE, HOUR = 60.0, 3600.0

DELAYS = (
    *(0.25, 1.0, 5.0, 30.0, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE),
    *(HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR),
    *(12 * HOUR,) * 5,
)
"""Seconds after the first, second, third ... failure; 3 days and 4 hours in all."""

JITTER = 0.2  # the share by which a delay is longer or shorter, so that not all come at once
LONGEST_WISH = 24 * HOUR  # seconds that a receiver may ask us to wait


def next_attempt_at(
    failures: int, *, at: datetime, random: float, retry_after: str | None = None
) -> datetime | None:
    """When to try again after failure number `failures` (from 1); None: not any more.

    `random` lies in [0, 1). A receiver's own wish, a Retry-After header, is granted if it
    is for later.
    """
    if failures > len(DELAYS):
        return None
    delay = DELAYS[failures - 1] * (1 + JITTER * (2 * random - 1))
    return at + timedelta(seconds=max(delay, parse_retry_after(retry_after, at)))


def parse_retry_after(retry_after: str | None, at: datetime) -> float:
    """Seconds that the header asks for, bounded; 0 for none, and for what makes no sense.

    Source of the rule: RFC 9110 section 10.2.3: a number of seconds, or a date.
    """
    text = (retry_after or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), LONGEST_WISH) if len(text) < 10 else LONGEST_WISH
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    wish = (moment.replace(tzinfo=moment.tzinfo or UTC) - at).total_seconds()
    return min(max(0.0, wish), LONGEST_WISH)


# Makes deliveries: one lane's turn after the other, each until it fails or has had its share.

BY = "orchestrator"
TURN = 20  # deliveries of a lane in a row, after which other lanes have their turn
GONE = 410


class Tried(msgspec.Struct, frozen=True):
    """A request and its answer, None where none came."""

    told: DeliveryAttempt
    reply: HttpReply | None

    @property
    def arrived(self) -> bool:
        return self.reply is not None and 200 <= self.reply.status < 300

    @property
    def gone(self) -> bool:
        """Whether the receiver says that it never wants to hear from us again."""
        return self.reply is not None and self.reply.status == GONE


class Deliverer:
    """Makes the deliveries of leases it is given.

    A webhook that has done nothing but fail for `disable_after` seconds is disabled. `now` gives
    the time in UTC, `random` numbers in [0, 1).
    """

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        teller: PayloadBuilder,
        log: EventLog,
        *,
        disable_after: float,
        now: Callable[[], datetime],
        random: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._teller = teller
        self._log = log
        self._patience = timedelta(seconds=disable_after)
        self._now = now
        self._random = random

    async def drain_lane(self, due: LeasedDelivery) -> datetime | None:
        """Makes this delivery, and those behind it as long as they arrive.

        Returns when the one that failed is tried again, if one did. Raises Unavailable.
        """
        following: LeasedDelivery | None = due
        left = TURN
        while following is not None and left:
            left -= 1
            following, again = await self._deliver(following, go_on=left > 0)
            if again is not None:
                return again
        return None

    async def _deliver(
        self, due: LeasedDelivery, *, go_on: bool
    ) -> tuple[LeasedDelivery | None, datetime | None]:
        """The next delivery of the same turn, and when this one is tried again."""
        tried = await self._try(due)
        at = self._now()
        verdict = self._judge(due, tried, at)
        after = await self._outbox.settle(due, tried.told, verdict, at=at, go_on=go_on)
        if after is None:
            return None, None
        if reason := self._hopeless(tried, after.failing_since, at):
            await self._disable(due, reason, at)
            return None, None
        return after.next, verdict.at if isinstance(verdict, RetryAt) else None

    async def _try(self, due: LeasedDelivery) -> Tried:
        """Whatever goes wrong on the way is a failure of this try. Raises Unavailable."""
        at, began = self._now(), perf_counter()
        delivery = due.delivery
        try:
            body = await self._teller.body(delivery)
        except Unavailable:
            raise
        except Exception as error:  # it stays with this delivery, where people see it
            reason = str(error) or type(error).__name__
            return Tried(
                DeliveryAttempt(at=at, duration=0.0, error=f"it cannot be told: {reason}"), None
            )
        secrets = [due.secrets[secret.id] for secret in due.webhook.active_secrets(at)]
        url = due.webhook.subscription.url
        try:
            reply = await self._sender.send(url, secrets, delivery.id, at, body)
        except DeliveryError as error:
            took = round(perf_counter() - began, 3)
            return Tried(DeliveryAttempt(at=at, duration=took, error=str(error)), None)
        told = DeliveryAttempt(
            at=at,
            duration=round(perf_counter() - began, 3),
            status=reply.status,
            error=_complaint(reply.status),
            excerpt=reply.excerpt,
        )
        return Tried(told, reply)

    def _judge(self, due: LeasedDelivery, tried: Tried, at: datetime) -> Verdict:
        if tried.arrived:
            return DeliverySucceeded()
        if due.delivery.is_test:  # whoever asked for it looks at the answer, and asks again
            return DeadLettered()
        again = next_attempt_at(
            due.delivery.failures + 1,
            at=at,
            random=self._random(),
            retry_after=tried.reply.retry_after if tried.reply else None,
        )
        return DeadLettered() if again is None else RetryAt(again)

    def _hopeless(self, tried: Tried, failing_since: datetime | None, at: datetime) -> str:
        """Why nothing more is to be sent; empty where there is hope."""
        if tried.gone:
            return "it answered 410 Gone"
        if failing_since is None or at - failing_since < self._patience:
            return ""
        return f"nothing but failures since {failing_since:%Y-%m-%d %H:%M} UTC: {tried.told.error}"

    async def _disable(self, due: LeasedDelivery, reason: str, at: datetime) -> None:
        command = DisableWebhook(webhook=due.webhook.id, reason=reason)
        try:
            await execute(self._log, command, CommandContext(by=BY, at=at))
        except (NotFound, InvalidState):
            return  # it was removed meanwhile


def _complaint(status: int) -> str:
    """What is wrong with an answer of this status; empty for a good one."""
    if 200 <= status < 300:
        return ""
    moved = ": redirects are not followed" if 300 <= status < 400 else ""
    return f"it answered {status}{moved}"
