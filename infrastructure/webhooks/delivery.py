"""Runs the deliverer: a bounded number of turns at once, beside those of other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import aiohttp
import structlog

from application.errors import Unavailable
from application.ports.webhooks import MAX_EXCERPT, DeliveryError, HttpReply, LeasedDelivery, Outbox
from application.webhooks.delivery import Deliverer
from infrastructure.outbound import (
    BadDestination,
    PrivateAddress,
    SafeHttpClient,
    signature_headers,
)
from infrastructure.tasks import cancel_and_wait

# The port `Sender`: signed requests, guarded like all that leave for other people's addresses.

MAX_EXCERPT_BYTES = 4 * MAX_EXCERPT  # bytes read of an answer: a character takes 4 at most


class HttpSender:
    """The port `Sender`: signed requests; `timeout` seconds include the response."""

    def __init__(self, outbound: SafeHttpClient, timeout: float) -> None:
        self._outbound = outbound
        self._timeout = timeout

    async def send(
        self, url: str, secrets: Sequence[str], id: str, at: datetime, body: bytes
    ) -> HttpReply:
        headers = signature_headers(id, int(at.timestamp()), body, *secrets)
        headers["Content-Type"] = "application/json"
        try:
            reply = await self._outbound.send(
                url, body, headers, self._timeout, max_bytes=MAX_EXCERPT_BYTES
            )
        except TimeoutError:
            raise DeliveryError(f"it did not answer within {self._timeout:g} s") from None
        except PrivateAddress as error:
            raise DeliveryError(str(error)) from None
        except BadDestination as error:
            raise DeliveryError(f"its address {error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError is what aiohttp makes of an address or an answer that is none.
            raise DeliveryError(f"it cannot be reached: {error or type(error).__name__}") from error
        text = reply.body.decode(errors="replace").replace("\0", "\ufffd")
        return HttpReply(
            status=reply.status, excerpt=text[:MAX_EXCERPT], retry_after=reply.retry_after
        )


MAX_CONCURRENT_LANES = 32  # turns at once in one process
OUTBOX_POLL_INTERVAL = 0.5  # seconds, unless deliveries were added
MAX_TIMED_RETRY_DELAY = 2.0  # seconds within which a retry is waited for to the moment
PRUNE_INTERVAL = 600.0  # seconds between two looks at what need not be kept any longer
ERROR_PAUSE = 1.0  # seconds before another try where the database cannot be reached

_log = structlog.get_logger(__name__)


class DeliveryLoop:
    """Loop that makes deliveries; finished ones are kept for `retention` seconds."""

    def __init__(
        self,
        outbox: Outbox,
        deliverer: Deliverer,
        deliveries_added: asyncio.Event,
        *,
        retention: float,
        now: Callable[[], datetime],
    ) -> None:
        self._outbox = outbox
        self._deliverer = deliverer
        self._deliveries_added = deliveries_added
        self._retention = timedelta(seconds=retention)
        self._now = now
        self._turns: dict[asyncio.Task[None], LeasedDelivery] = {}
        self._sweep_at = 0.0

    async def run(self) -> None:
        """Make deliveries until cancelled; then release open leases for other processes."""
        try:
            while True:
                try:
                    await self._round()
                except Unavailable as error:
                    _log.warning("deliveries_interrupted", error=str(error), retry_in=ERROR_PAUSE)
                    await asyncio.sleep(ERROR_PAUSE)
        finally:
            await self._stop()

    async def _round(self) -> None:
        self._deliveries_added.clear()
        free = MAX_CONCURRENT_LANES - len(self._turns)
        dues = await self._outbox.claim(free, at=self._now()) if free else ()
        for due in dues:
            turn = asyncio.create_task(self._take(due), name=f"delivery {due.delivery.id}")
            self._turns[turn] = due
            turn.add_done_callback(self._over)
        loop = asyncio.get_running_loop()
        if loop.time() >= self._sweep_at:
            await self._delete_expired()
            self._sweep_at = loop.time() + PRUNE_INTERVAL
        if not dues or len(self._turns) == MAX_CONCURRENT_LANES:
            with suppress(TimeoutError):
                async with asyncio.timeout(OUTBOX_POLL_INTERVAL):
                    await self._deliveries_added.wait()

    async def _delete_expired(self) -> None:
        if count := await self._outbox.delete_expired(self._now() - self._retention):
            _log.info("deliveries_forgotten", count=count)

    async def _take(self, due: LeasedDelivery) -> None:
        """Make the deliveries of one lane; after an error, repeat them when the lease ends."""
        try:
            again = await self._deliverer.drain_lane(due)
            if (
                again is not None
                and (left := (again - self._now()).total_seconds()) < MAX_TIMED_RETRY_DELAY
            ):
                # Polling alone would be late by half of OUTBOX_POLL_INTERVAL.
                asyncio.get_running_loop().call_later(max(0.0, left), self._deliveries_added.set)
        except Unavailable as error:
            _log.warning("delivery_interrupted", delivery=due.delivery.id, error=str(error))
        except Exception:
            _log.exception("delivery_broke_off", delivery=due.delivery.id)

    def _over(self, turn: asyncio.Task[None]) -> None:
        self._turns.pop(turn, None)
        self._deliveries_added.set()

    async def _stop(self) -> None:
        under_way = dict(self._turns)
        await cancel_and_wait(*under_way)
        try:
            await self._outbox.release_leases(list(under_way.values()), at=self._now())
        except Unavailable as error:
            _log.warning("deliveries_not_given_back", count=len(under_way), error=str(error))
