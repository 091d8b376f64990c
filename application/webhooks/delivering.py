"""Makes deliveries: one lane's turn after the other, each until it fails or has had its share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from time import perf_counter

import msgspec

from application.commands import DisableWebhook
from application.errors import NotFound, Unavailable
from application.handlers.execute import CommandContext, execute
from application.ports.deliveries import (
    Delivered,
    Due,
    GivenUp,
    Outbox,
    Reply,
    Sender,
    Try,
    TryAgain,
    Unsendable,
    Verdict,
)
from application.ports.event_log import EventLog
from application.webhooks.backoff import next_try
from application.webhooks.telling import Teller
from domain.errors import InvalidState

BY = "orchestrator"
TURN = 20  # deliveries of a lane in a row, after which other lanes have their turn
GONE = 410


class Tried(msgspec.Struct, frozen=True):
    """A request and its answer, None where none came."""

    told: Try
    reply: Reply | None

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
        teller: Teller,
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

    async def take_turn(self, due: Due) -> datetime | None:
        """Makes this delivery, and those behind it as long as they arrive.

        Returns when the one that failed is tried again, if one did. Raises Unavailable.
        """
        following: Due | None = due
        left = TURN
        while following is not None and left:
            left -= 1
            following, again = await self._deliver(following, go_on=left > 0)
            if again is not None:
                return again
        return None

    async def _deliver(self, due: Due, *, go_on: bool) -> tuple[Due | None, datetime | None]:
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
        return after.next, verdict.at if isinstance(verdict, TryAgain) else None

    async def _try(self, due: Due) -> Tried:
        """Whatever goes wrong on the way is a failure of this try. Raises Unavailable."""
        at, began = self._now(), perf_counter()
        delivery = due.delivery
        try:
            body = await self._teller.body(delivery)
        except Unavailable:
            raise
        except Exception as error:  # it stays with this delivery, where people see it
            reason = str(error) or type(error).__name__
            return Tried(Try(at=at, duration=0.0, error=f"it cannot be told: {reason}"), None)
        secrets = [due.secrets[secret.id] for secret in due.webhook.active_secrets(at)]
        url = due.webhook.subscription.url
        try:
            reply = await self._sender.send(url, secrets, delivery.id, at, body)
        except Unsendable as error:
            took = round(perf_counter() - began, 3)
            return Tried(Try(at=at, duration=took, error=str(error)), None)
        told = Try(
            at=at,
            duration=round(perf_counter() - began, 3),
            status=reply.status,
            error=_complaint(reply.status),
            excerpt=reply.excerpt,
        )
        return Tried(told, reply)

    def _judge(self, due: Due, tried: Tried, at: datetime) -> Verdict:
        if tried.arrived:
            return Delivered()
        if due.delivery.is_test:  # whoever asked for it looks at the answer, and asks again
            return GivenUp()
        again = next_try(
            due.delivery.failures + 1,
            at=at,
            random=self._random(),
            retry_after=tried.reply.retry_after if tried.reply else None,
        )
        return GivenUp() if again is None else TryAgain(again)

    def _hopeless(self, tried: Tried, failing_since: datetime | None, at: datetime) -> str:
        """Why nothing more is to be sent; empty where there is hope."""
        if tried.gone:
            return "it answered 410 Gone"
        if failing_since is None or at - failing_since < self._patience:
            return ""
        return f"nothing but failures since {failing_since:%Y-%m-%d %H:%M} UTC: {tried.told.error}"

    async def _disable(self, due: Due, reason: str, at: datetime) -> None:
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
