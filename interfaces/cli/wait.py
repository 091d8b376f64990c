"""Connection of a command to its server: waiting, retries, and the notes printed meanwhile."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp

from interfaces.cli.console import Unreachable, print_stderr

QUIET = 0.5  # seconds without an answer after which the command reports that it waits
MIN_PAUSE = 0.25  # seconds between two attempts
MAX_PAUSE = 5.0

_NO_SUCH_NAME = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)
_PROXY_ERRORS = (502, 503)  # sent by a proxy whose server does not respond, or not yet
_BY_NUMBER = (OSError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError)
"""Errors reported by the system's text for their number, which is clearer than their own."""


class ServerConnection:
    """State of the connection to one server, and the notes about it on the terminal.

    Until the first response, attempts continue for `connect_timeout` seconds in all. From then on
    each request may be without a response for `patience` seconds.
    """

    def __init__(self, url: str, *, patience: float, connect_timeout: float) -> None:
        self.url = url
        self.patience = patience
        self.connect_timeout = connect_timeout
        self.has_responded = False
        self.note: Callable[[str], None] = lambda line: print_stderr(f"uptrail: {line}")
        self._began: float | None = None
        self._is_waiting = False
        self._noted_until = 0.0  # by the loop's clock

    @property
    def deadline(self) -> float | None:
        """Return the time limit, by the clock of the loop; None once the server has responded."""
        if self.has_responded:
            return None
        if self._began is None:
            self._began = asyncio.get_running_loop().time()
        return self._began + self.connect_timeout

    @asynccontextmanager
    async def answer(
        self, request: AbstractAsyncContextManager[aiohttp.ClientResponse]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the response. Raises TimeoutError if the server never responded in time."""
        loop = asyncio.get_running_loop()
        waiting = None if self.has_responded else loop.call_later(QUIET, self._report_waiting)
        try:
            async with asyncio.timeout_at(self.deadline) as clock, request as response:
                clock.reschedule(None)
                if waiting is not None:
                    waiting.cancel()
                if response.status not in _PROXY_ERRORS:
                    self.mark_responded()
                yield response
        finally:
            if waiting is not None:
                waiting.cancel()

    def mark_responded(self) -> None:
        self.has_responded = True
        if self._is_waiting:
            self._is_waiting = False
            self._noted_until = 0.0
            self.note(f"{self.url} responds again")

    def retrying(self, error: Exception, pause: float, left: float) -> None:
        """Report why the command waits, and for how long.

        Concurrent requests fail together: one line is printed for all of them.
        """
        now = asyncio.get_running_loop().time()
        if now < self._noted_until:
            return
        self._noted_until = now + pause
        note = f"trying again in {pause:.2g} s"
        if not self._is_waiting:
            note += f", for {max(left, pause):.0f} s at most"
        self._is_waiting = True
        self.note(f"{error}; {note}")

    def unreachable(self, error: BaseException) -> Unreachable:
        """Return the error as one sentence with its reason."""
        if isinstance(error, aiohttp.ClientConnectorError):
            error = error.os_error
        if isinstance(error, TimeoutError) and not self.has_responded:
            reason = f"no response within {self.connect_timeout:g} s (--connect-timeout)"
        elif isinstance(error, aiohttp.ClientResponseError):
            reason = "the program that listens there does not speak HTTP"
        elif isinstance(error, OSError) and type(error) in _BY_NUMBER and error.errno:
            reason = os.strerror(error.errno).lower()
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Unreachable(
            f"{self.url} does not respond: {reason}", "is it running? check with: uptrail doctor"
        )

    def _report_waiting(self) -> None:
        if not self._is_waiting:
            self._is_waiting = True
            self.note(f"waiting for {self.url} to respond, for {self.connect_timeout:g} s at most")


class RequestBackoff:
    """Backoff between the attempts of one request, until its time limit."""

    def __init__(self, connection: ServerConnection) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self.reset()

    def reset(self) -> None:
        """Reset the time limit after progress."""
        self._end = self._loop.time() + self._connection.patience
        self._pause = MIN_PAUSE

    async def wait_after_failure(self, cause: BaseException, *, repeatable: bool = True) -> None:
        """Wait after a request without a response. Raises Unreachable if a retry is useless.

        A request that is not `repeatable` may have been carried out, unless it was never sent.
        """
        connection = self._connection
        error = connection.unreachable(cause)
        sent = not isinstance(cause, aiohttp.ClientConnectorError)
        if _is_final(cause, has_responded=connection.has_responded) or (sent and not repeatable):
            raise error
        await self.wait(error)

    async def wait(self, error: Exception, retry_after: str | None = None) -> None:
        """Wait before the next attempt, or raise the error after the time limit."""
        pause = float(retry_after) if retry_after and retry_after.isdecimal() else self._pause
        end = self._connection.deadline or self._end
        left = end - self._loop.time()
        if pause > left:
            raise error
        self._connection.retrying(error, pause, left)
        await asyncio.sleep(pause)
        self._pause = min(2 * self._pause, MAX_PAUSE)


def _is_final(error: BaseException, *, has_responded: bool) -> bool:
    """Return whether retries are useless: bad certificate, no HTTP, unknown host name.

    A name that has existed before is missing only for a while, as without a network.
    """
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError | aiohttp.ClientResponseError):
        return True
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return not has_responded and isinstance(cause, socket.gaierror) and cause.errno in _NO_SUCH_NAME
