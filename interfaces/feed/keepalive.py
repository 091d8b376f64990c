"""Keep-alive pings and periodic re-authentication of feed connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import structlog

from application.errors import Unavailable
from application.ports.auth import Credential, Keys, Principal, Scope
from infrastructure.settings import Settings
from interfaces.feed.authentication import authenticate
from interfaces.feed.connection import FeedClient, FeedLimits, advance
from interfaces.feed.protocol import CloseCode, Expiring
from interfaces.feed.registry import ConnectionRegistry

MAX_MISSED_HEARTBEATS = 2.5  # heartbeat intervals of silence before a connection is closed

_log = structlog.get_logger(__name__)


class KeepAlive:
    """Periodic passes over all clients, instead of timers for each."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        keys: Keys,
        settings: Settings,
        limits: FeedLimits,
        now: Callable[[], datetime],
    ) -> None:
        self._registry = registry
        self._keys = keys
        self._heartbeat = settings.feed_heartbeat
        self._buffer = settings.feed_buffer
        self._check_interval = limits.credential_check_interval
        self._expiry_warning = limits.expiry_warning
        self._now = now

    async def ping_clients(self) -> None:
        """Ping all clients periodically, and close silent connections."""
        while True:
            await asyncio.sleep(self._heartbeat)
            for client in tuple(self._registry.clients):
                try:
                    await self._ping(client)
                except ConnectionError:
                    self._registry.remove(client)

    async def check_credentials(self) -> None:
        """Close connections of revoked or expired credentials, and warn those close to expiry.

        Each credential is checked once, for all clients that use it.
        """
        while True:
            await asyncio.sleep(self._check_interval)
            holders: dict[Credential, list[FeedClient]] = {}
            for client in self._registry.clients:
                holders.setdefault(client.credential, []).append(client)
            for credential, clients in holders.items():
                await self._check_credential(credential, clients)

    async def _ping(self, client: FeedClient) -> None:
        if client.transport.buffered_bytes > self._registry.buffer_limit(client, self._buffer) // 2:
            # Catching up waits for the buffer to drain, within a timeout.
            self._registry.fall_behind(client)
            return
        silent = asyncio.get_running_loop().time() - client.last_received_at
        if client.transport.is_bidirectional and silent > MAX_MISSED_HEARTBEATS * self._heartbeat:
            client.close(CloseCode.SILENT, f"nothing was heard for {silent:.0f} s")
            return
        if changes := self._registry.idle_advance(client):
            head, reached = advance(client.progress, changes)
            await client.send_rows(head, client.encode_rows(changes), reached)
        await client.transport.ping()

    async def _check_credential(self, credential: Credential, clients: list[FeedClient]) -> None:
        try:
            principal = await authenticate(credential, self._keys)
        except Unavailable as error:
            _log.warning("feed_credential_check_failed", error=str(error))
            return
        for client in clients:
            if client.credential != credential:  # it has re-authenticated meanwhile
                continue
            if principal is None or _permissions(client.principal) != _permissions(principal):
                client.end_access()
            else:
                client.principal = principal  # its expiry may have changed
                await self._warn_of_expiry(client)

    async def _warn_of_expiry(self, client: FeedClient) -> None:
        """Warn a client once that its credential expires soon."""
        ends = client.principal.expires_at
        if ends is None or ends == client.expiry_warned_for:
            return
        within = (ends - self._now()).total_seconds()
        if within <= self._expiry_warning:
            client.expiry_warned_for = ends
            with suppress(ConnectionError):  # its own task also gets the error, and cleans up
                await client.send_control(Expiring(ends, max(0.0, round(within, 3))))


def _permissions(principal: Principal) -> tuple[str, Scope, UUID | None]:
    return principal.owner, principal.scope, principal.batch
