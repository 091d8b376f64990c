"""A process of a server of several; `interfaces.bootstrap.processes` starts it, nobody types it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from functools import partial

import structlog

from infrastructure.tasks import end
from infrastructure.telemetry.logging import configure_logging
from interfaces.bootstrap.alone import keep
from interfaces.bootstrap.member import ALIVE, SIGN, UP, Order, read_order
from interfaces.bootstrap.parts import open_parts
from interfaces.bootstrap.stopping import signals
from interfaces.cli.errors import Exit
from interfaces.cli.main import guarded
from interfaces.cli.running import run_fast
from interfaces.cli.serve import stop_revisiting


def work() -> int:
    """Does what the parent orders, until it says so, or is gone."""
    line = sys.stdin.buffer.readline()
    if not line:
        return Exit.OK
    order = read_order(line)
    configure_logging(order.settings.log_format, order.settings.log_level)
    structlog.contextvars.bind_contextvars(process=order.name)
    run_fast(_serve(order))
    return Exit.OK


async def _serve(order: Order) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), partial(_orphaned, loop, stopping))
    sockets = [socket.socket(fileno=number) for number in order.sockets]
    living: list[asyncio.Task[None]] = []

    def up() -> None:
        stop_revisiting()
        os.write(sys.stdout.fileno(), UP)
        living.append(asyncio.create_task(_live(), name="signs-of-life"))

    with signals(stopping):
        async with open_parts(order.settings, order.pools) as parts:
            try:
                await keep(parts, order.roles, sockets, up, stopping)
            finally:
                await end(*living)


def _orphaned(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """The parent says nothing more: the line is readable because it is closed."""
    loop.remove_reader(sys.stdin.fileno())
    stopping.set()


async def _live() -> None:
    """Says again and again that this process is not stuck; a parent that is gone does not hear."""
    with suppress(BrokenPipeError):
        while True:
            await asyncio.sleep(SIGN)
            os.write(sys.stdout.fileno(), ALIVE)


if __name__ == "__main__":
    sys.exit(guarded(work))
