"""Faults of a simulation, drawn from its seed: delays, lost requests, lost answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from random import Random

import msgspec
import psycopg

from application.errors import Unavailable
from tests.memory.database import Wire

LATENCY = 0.002  # seconds, on average


class FaultRates(msgspec.Struct, kw_only=True):
    """Probabilities of faults per call, and how often processes are killed, per second."""

    lost_request: float = 0.0
    lost_response: float = 0.0
    late_commit: float = 0.0
    lost_notification: float = 0.0
    late_notification: float = 0.0
    slow_call: float = 0.0
    kills: float = 0.0
    clock_steps: float = 0.0
    slow_processes: float = 0.0
    lost_sessions: float = 0.0
    duplicate_jobs: float = 0.0

    def stop(self) -> None:
        """Let nothing fail any more."""
        for name in self.__struct_fields__:
            setattr(self, name, 0.0)


def draw_rates(random: Random) -> FaultRates:
    """Return rates for one simulation; some have few faults, so that much gets done."""

    def rate(most: float) -> float:
        return random.choice((0.0, 0.1, 0.3, 1.0)) * most

    return FaultRates(
        lost_request=rate(0.02),
        lost_response=rate(0.02),
        late_commit=rate(0.01),
        lost_notification=rate(0.5),
        late_notification=rate(0.3),
        slow_call=rate(0.01),
        kills=rate(0.4),
        clock_steps=rate(0.1),
        slow_processes=rate(0.1),
        lost_sessions=rate(0.1),
        duplicate_jobs=rate(0.3),
    )


class FaultyWire(Wire):
    """The way between one process and the in-memory server, with delays and faults.

    `fault` is called with the name of each fault.
    """

    def __init__(
        self, random: Random, rates: FaultRates, fault: Callable[[str], None] = lambda name: None
    ) -> None:
        self.slowness = 1.0
        self._random = random
        self._rates = rates
        self._fault = fault

    async def request(self, name: str) -> None:
        await self._travel(name)
        if self._random.random() < self._rates.lost_request:
            self._fault(f"the request {name} is lost")
            raise psycopg.OperationalError("the connection was lost before the request")

    async def response(self, name: str) -> None:
        await self._travel(name)
        if self._random.random() < self._rates.lost_response:
            self._fault(f"the answer to {name} is lost")
            raise psycopg.OperationalError("the connection was lost before the answer")

    def loses_commit(self) -> float | None:
        if self._random.random() >= self._rates.late_commit:
            return None
        self._fault("a commit is given up, and happens later")
        return self._random.expovariate(1 / 1.0)

    def notification(self, deliver: Callable[[], None], context: Context) -> None:
        if self._random.random() < self._rates.lost_notification:
            return
        delay = self._random.expovariate(1 / LATENCY)
        if self._random.random() < self._rates.late_notification:
            delay += self._random.random()
        asyncio.get_running_loop().call_later(delay, deliver, context=context)

    async def _travel(self, name: str) -> None:
        delay = self._random.expovariate(1 / LATENCY) * self.slowness
        if self._random.random() < self._rates.slow_call:
            delay += self._random.expovariate(1 / 2.0)
            self._fault(f"{name} takes {delay:.3f} s")
        await asyncio.sleep(delay)


class FaultyDiskWire(FaultyWire):
    """The way to the blob store."""

    async def request(self, name: str) -> None:
        try:
            await super().request(name)
        except psycopg.Error:
            raise Unavailable("the blob store cannot be reached") from None

    async def response(self, name: str) -> None:
        try:
            await super().response(name)
        except psycopg.Error:
            raise Unavailable("the blob store did not answer") from None
