"""End running requests and feed connections whose credential was revoked or has expired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol

import structlog
from aiohttp import web

from application.errors import Unavailable
from application.ports.auth import Credential, Keys
from application.transfers.errors import AccessEnded
from interfaces.common.middleware import STARTED
from interfaces.common.server import connection_of

_log = structlog.get_logger(__name__)


class Holder(Protocol):
    """Running work that depends on a credential."""

    credential: Credential

    def end_access(self) -> None:
        """End the work: the credential is no longer valid."""


class RunningRequest:
    """A request from its authentication to the end of its handler.

    Reading its body raises AccessEnded once the credential has ended, so that a transfer keeps the
    bytes that arrived; a response that has begun is cut off. A handler that does neither comes to
    its own end: what it records was asked for in time.
    """

    def __init__(self, request: web.Request, credential: Credential) -> None:
        self.credential = credential
        self.ended = False
        self._request = request

    def end_access(self) -> None:
        if self.ended:
            return
        self.ended = True
        request = self._request
        connection_of(request).fail_body(AccessEnded())
        if request.get(STARTED) and request.transport is not None:
            request.transport.abort()


class RunningRequests:
    """Registry of requests and feed connections of this process, by credential."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._holders: set[Holder] = set()

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, request: web.Request, credential: Credential) -> RunningRequest:
        """Register the request, until `remove`."""
        entry = request[RUNNING_REQUEST] = RunningRequest(request, credential)
        self._holders.add(entry)
        return entry

    def remove(self, request: web.Request) -> None:
        """Unregister the request.

        It no longer refers to its entry then, which refers to it: a cycle would keep each request
        with its buffers until the next garbage collection.
        """
        self._holders.discard(request[RUNNING_REQUEST])
        del request[RUNNING_REQUEST]

    def replace(self, request: web.Request, holder: Holder) -> None:
        """Register `holder` in place of the request that it serves; see `discard`."""
        if RUNNING_REQUEST in request:
            self._holders.discard(request[RUNNING_REQUEST])
        self._holders.add(holder)

    def discard(self, holder: Holder) -> None:
        self._holders.discard(holder)

    async def watch(self) -> None:
        """End requests and connections of ended credentials, until cancelled."""
        while True:
            await self._keys.changed()
            try:
                await self.check()
            except Unavailable as error:
                _log.warning("cannot_check_credentials", error=str(error))

    async def check(self) -> None:
        """End the holders of ended credentials, with one query for all. Raises Unavailable."""
        credentials = {holder.credential for holder in self._holders}
        if not credentials:
            return
        ended = await self._keys.ended(credentials)
        for holder in tuple(self._holders) if ended else ():
            if holder.credential in ended:  # a feed connection may have another meanwhile
                holder.end_access()


RUNNING: web.AppKey[RunningRequests] = web.AppKey("running_requests", RunningRequests)
RUNNING_REQUEST: web.RequestKey[RunningRequest] = web.RequestKey("running_request", RunningRequest)


def watch_running_requests(app: web.Application, keys: Keys) -> None:
    """Give the application its RUNNING registry, and watch it while the application runs."""
    app[RUNNING] = RunningRequests(keys)
    app.cleanup_ctx.append(_watch)


async def _watch(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[RUNNING].watch(), name="credentials-watch")
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
