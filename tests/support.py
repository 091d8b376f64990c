"""Event loop, polling with a deadline, free ports and SQL for tests."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from random import SystemRandom
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg

Result = TypeVar("Result")

# Below the ephemeral ports: Linux from 32768 on (ip(7),
# ip_local_port_range), others from 49152 on (RFC 6335). No other test is given one of these.
_PORTS = range(20_000, 32_000)
_given: set[int] = set()


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run the coroutine of a test to its end, on uvloop where there is one, as in production."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


async def eventually(
    condition: Callable[[], Awaitable[object] | object], deadline: float = 60.0
) -> Any:
    """Wait until the condition returns a true value, and return it.

    The condition may be a plain or an asynchronous function. Raises AssertionError after
    `deadline` seconds.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if loop.time() > end:
            raise AssertionError(f"not so after {deadline} s: {condition}")
        await asyncio.sleep(0.01)


def path_of(location: str) -> str:
    """The path of an absolute `Location`."""
    parts = urlsplit(location)
    assert parts.scheme in ("http", "https"), location
    assert parts.netloc, location
    return parts.path


def with_database(url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    return re.sub(r"^(\w+://[^/?]*)(/[^?]*)?", rf"\1/{name}", url)


def free_port() -> int:
    """Return an unused port that stays free until a server takes it, and between two servers.

    Never the same twice for one process.
    """
    while True:
        port = SystemRandom().choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def execute(url: str, statement: str, *parameters: object) -> int:
    """Execute SQL beside the program; return the number of rows that it changed."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement.encode(), parameters).rowcount


def tamper(url: str, statement: str, *parameters: object) -> None:
    """Change stored rows beside the program."""
    assert execute(url, statement, *parameters) > 0, statement
